"""The three small networks of MTCNN, as the weights of `facenet-pytorch` name their tensors.

What belongs here: the networks. What does not: what is done with their outputs (`mtcnn`).

They were converted from MATLAB, which keeps pictures column by column: before each fully connected layer the last axes
change places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn


class Networks(NamedTuple):
    """Proposes boxes, refines them, and gives the last word with five landmarks."""

    propose: nn.Module
    refine: nn.Module
    output: nn.Module


def build(state: Mapping[str, torch.Tensor]) -> Networks:
    """The three networks with weights in them.

    Args:
        state: tensors by name, with `pnet.`, `rnet.` and `onet.` before the names of each network.
    """
    made = []
    for prefix, network in (("pnet.", _proposal()), ("rnet.", _refinement()), ("onet.", _output())):
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        network.load_state_dict(own, strict=True)
        made.append(network.eval())
    return Networks(*made)


def _proposal() -> nn.Module:
    import torch
    from torch import nn

    class Proposal(nn.Module):
        """A picture to, for each place, corrections of a box of 12 pixels and how probable a face is in it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
            self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
            self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
            self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
            self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

        def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self.pool1(self.prelu1(self.conv1(batch)))
            found = self.prelu3(self.conv3(self.prelu2(self.conv2(found))))
            return self.conv4_2(found), torch.softmax(self.conv4_1(found), dim=1)

    return Proposal()


def _refinement() -> nn.Module:
    import torch
    from torch import nn

    class Refinement(nn.Module):
        """Crops of 24 pixels to corrections of their boxes and probabilities."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
            self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
            self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
            self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
            self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
            self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
            self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

        def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self.pool1(self.prelu1(self.conv1(batch)))
            found = self.pool2(self.prelu2(self.conv2(found)))
            found = self.prelu3(self.conv3(found)).permute(0, 3, 2, 1).flatten(1)
            found = self.prelu4(self.dense4(found))
            return self.dense5_2(found), torch.softmax(self.dense5_1(found), dim=1)

    return Refinement()


def _output() -> nn.Module:
    import torch
    from torch import nn

    class Output(nn.Module):
        """Crops of 48 pixels to corrections of their boxes, landmarks in them, and probabilities."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
            self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
            self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
            self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
            self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
            self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
            self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
            self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
            self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

        def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            found = self.pool1(self.prelu1(self.conv1(batch)))
            found = self.pool2(self.prelu2(self.conv2(found)))
            found = self.pool3(self.prelu3(self.conv3(found)))
            found = self.prelu4(self.conv4(found)).permute(0, 3, 2, 1).flatten(1)
            found = self.prelu5(self.dense5(found))
            return self.dense6_2(found), self.dense6_3(found), torch.softmax(self.dense6_1(found), dim=1)

    return Output()
