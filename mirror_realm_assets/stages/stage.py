"""What a stage is, what it is given, and what it returns.

What belongs here: types and the few lines with which a stage turns errors into findings. What does not: recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from mirror_realm_assets.catalog.features import Finding
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.catalog.media import Identified
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.catalog.wants import Recipe, Rule
from mirror_realm_assets.errors import LeaseLost, MirrorRealmError, Refused, SetupError, SystemicFailure, as_error

if TYPE_CHECKING:
    from mirror_realm_assets.stages.context import StageContext
    from mirror_realm_assets.store.interface import StoredObject

Lane = Literal["search", "enhance", "archive"]
LANES: tuple[Lane, ...] = get_args(Lane)
Run = Callable[[Iterable[Work], "StageContext"], Iterator["Result"]]


MIB = 1024**2
PROCESS_BYTES = 1000 * MIB
"""What a process holds with Dagster, torch (for CUDA), spandrel and libvips: 950 MiB, 520 of them pages of files."""


@dataclass(frozen=True)
class Memory:
    """Main memory that a step takes, in bytes, for who places it on a machine.

    Attributes:
        usual: what it holds at most with ordinary files.
        most: what no file makes it exceed; with more it may be ended.
    """

    usual: int
    most: int


@dataclass(frozen=True)
class Stage:
    """One step of the work on every file, from which `assets.factory.stage_asset` builds an asset.

    Attributes:
        name: of the asset.
        description: what it makes, for people.
        lane: the runs it belongs to.
        needs: stages whose features must be there before.
        recipe: its recipe under a source's policy, or None when the policy does not want it.
        run: takes the open work and yields one result for each, as soon as it has it, in any order.
        max_pixels: the largest picture a policy wants it for, or None.
        stills_only: whether it leaves out frames of videos and pages of documents.
        of_bytes: whether it is of the file's bytes, once a file, and not of each picture in it.
        after: features that it waits for under a policy, however they end.
        reads: features that it reads besides `needs`, where they are wanted; edges of its asset.
        resource: `gpu` adds the GPU tags and, with `pool`, the limit on how many run at once.
        pool: name of the Dagster pool, if any.
        memory: what its step takes; asked when a process builds its definitions.
        group: group of the asset.
        kinds: kinds shown on the asset.
    """

    name: str
    description: str
    lane: Lane
    needs: tuple[str, ...]
    recipe: Callable[[SourcePolicy], Recipe | None]
    run: Run
    max_pixels: Callable[[SourcePolicy], int | None] = lambda _policy: None
    stills_only: bool = False
    of_bytes: bool = False
    after: Callable[[SourcePolicy], tuple[str, ...]] = lambda _policy: ()
    reads: tuple[str, ...] = ()
    resource: Literal["cpu", "gpu"] = "cpu"
    pool: str | None = None
    memory: Callable[[], Memory] = lambda: Memory(PROCESS_BYTES, 2 * PROCESS_BYTES)
    group: str = "media"
    kinds: frozenset[str] = frozenset({"python"})

    @property
    def feature(self) -> str:
        """The feature it records: one a stage, under the asset's name."""
        return self.name

    @property
    def rule(self) -> Rule:
        """When its feature is wanted, for the ledger."""
        return Rule(self.feature, self.needs, self.recipe, self.max_pixels, self.stills_only, self.of_bytes, self.after)


@dataclass(frozen=True)
class Result:
    """What a stage found for one piece of work.

    Attributes:
        work: as it was given.
        finding: what is recorded.
        objects: objects of the store that the finding names, with their kind, written and verified.
        intents: ids of the intents under which they were written; ended in the recording transaction.
        identified: for `raw_media` only: what the bytes are.
        pictures: small pictures for the run's previews (JPEG, PNG or WebP bytes): one, or before and after.
        known: the finding was recorded before (the same bytes at another place): only the place is new.
    """

    work: Work
    finding: Finding
    objects: Sequence[tuple[str, StoredObject]] = ()
    intents: Sequence[int] = ()
    identified: Identified | None = None
    pictures: Sequence[bytes] = field(default=(), repr=False)
    known: bool = False


def finding_of(error: BaseException, *, seconds: float | None = None, default: str = "model_failed") -> Finding:
    """The finding for an error about one piece of work.

    Raises:
        LeaseLost, SetupError, SystemicFailure: unchanged, because they are not about this piece alone.
    """
    if isinstance(error, LeaseLost | SetupError | SystemicFailure) or not isinstance(error, Exception):
        raise error
    typed: MirrorRealmError = as_error(error, default=default)
    status = "refused" if isinstance(typed, Refused) else "failed"
    return Finding(status, code=typed.code, reason=typed.message, seconds=seconds)


def lane_features(stages: Sequence[Stage], lane: Lane) -> list[str]:
    """The features of a lane, in dependency order."""
    return [stage.feature for stage in stages if stage.lane == lane]
