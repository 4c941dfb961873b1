"""EfficientNet-Lite0 as a plain torch module, with the parameter names of timm's `tf_efficientnet_lite0`.

What belongs here: the one network of the default embedder. What does not: other networks; those come from libraries. It
is here because importing timm costs 3.2 s in every run (through torchvision and torch's compiler), more than everything
else between a dropped photo and its vector. A test holds it equal to timm's.

Source: Tan and Le, "EfficientNet" (2019), in the form without squeeze-and-excitation and with ReLU6 that TensorFlow
published as "lite"; its padding is TensorFlow's "same", which depends on the input's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Blocks in a stage, kernel, stride of the first block, expansion, channels; Lite0 keeps the base widths and depths.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_EPSILON = 1e-3  # TensorFlow's batch normalisation


def efficientnet_lite0() -> torch.nn.Module:  # noqa: C901 - its classes stand inside, because torch is imported here
    """The network with random weights; called with `Nx3xHxW` it returns the pooled features, `Nx1280`."""
    from torch import nn
    from torch.nn import functional

    class Same(nn.Conv2d):
        """A convolution with TensorFlow's "same" padding: the odd pixel goes to the right and the bottom."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pads: list[int] = []
            for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
                missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
                pads += [missing // 2, missing - missing // 2]
            if pads[0] == pads[1] and pads[2] == pads[3]:
                pad = (pads[2], pads[0])
                return functional.conv2d(x, self.weight, None, self.stride, pad, self.dilation, self.groups)
            return functional.conv2d(
                functional.pad(x, pads), self.weight, None, self.stride, 0, self.dilation, self.groups
            )

    class Block(nn.Module):
        """Expand, convolve each channel, project; the first stage expands nothing and names its layers otherwise."""

        def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
            super().__init__()
            inner = inputs * expansion
            self.expands = expansion > 1
            self.skips = stride == 1 and inputs == outputs
            if self.expands:
                self.conv_pw = nn.Conv2d(inputs, inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner, _EPSILON)
            self.conv_dw = Same(inner, inner, kernel, stride, groups=inner, bias=False)
            self.bn2 = nn.BatchNorm2d(inner if self.expands else outputs, _EPSILON)
            if self.expands:
                self.conv_pwl = nn.Conv2d(inner, outputs, 1, bias=False)
                self.bn3 = nn.BatchNorm2d(outputs, _EPSILON)
            else:
                self.conv_pw = nn.Conv2d(inner, outputs, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.expands:
                y = functional.relu6(self.bn1(self.conv_pw(x)))
                y = functional.relu6(self.bn2(self.conv_dw(y)))
                y = self.bn3(self.conv_pwl(y))
            else:
                y = functional.relu6(self.bn1(self.conv_dw(x)))
                y = self.bn2(self.conv_pw(y))
            return x + y if self.skips else y

    class Lite0(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_stem = Same(3, _STEM, 3, 2, bias=False)
            self.bn1 = nn.BatchNorm2d(_STEM, _EPSILON)
            stages, inputs = [], _STEM
            for count, kernel, stride, expansion, outputs in _STAGES:
                blocks = []
                for n in range(count):
                    blocks.append(Block(inputs, outputs, kernel, stride if n == 0 else 1, expansion))
                    inputs = outputs
                stages.append(nn.Sequential(*blocks))
            self.blocks = nn.Sequential(*stages)
            self.conv_head = nn.Conv2d(inputs, _HEAD, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(_HEAD, _EPSILON)
            self.classifier = nn.Linear(_HEAD, _CLASSES)  # of the weights' file; labels are not used here

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = functional.relu6(self.bn1(self.conv_stem(x)))
            x = functional.relu6(self.bn2(self.conv_head(self.blocks(x))))
            return x.mean((2, 3))

    return Lite0()
