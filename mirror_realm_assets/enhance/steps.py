"""What is done to one picture of a library, step by step; each step says in which thread it may be taken.

What belongs here: the steps. What does not: their order over many pictures (`stage` takes them one after the other,
`overlap` those of several pictures at once), the network (`upscale`), recording (`stages.engine`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from mirror_realm_assets.catalog.features import Finding
from mirror_realm_assets.catalog.items import Work
from mirror_realm_assets.errors import Failed, Refused
from mirror_realm_assets.ingest.decoders import decoder
from mirror_realm_assets.ingest.opening import open_original
from mirror_realm_assets.ingest.still import Still
from mirror_realm_assets.stages.context import StageContext
from mirror_realm_assets.stages.stage import Result, finding_of
from mirror_realm_assets.store import keys
from mirror_realm_assets.store.interface import StoredObject

if TYPE_CHECKING:
    from mirror_realm_assets.enhance.engines import Engine
    from mirror_realm_assets.enhance.faces import FaceRestorer, RestoredFace
    from mirror_realm_assets.enhance.layers import Pixels
    from mirror_realm_assets.enhance.progress import Prepared


@dataclass
class Picture:
    """One picture on its way.

    Attributes:
        work: what it is of.
        began: when it was begun, on the monotonic clock.
        still: as it was decoded.
        prepared: the same for the engine.
        size: height and width of the result.
        key: of the result in the store.
        faces: restored, to be put into the result.
    """

    work: Work
    began: float
    still: Still
    prepared: Prepared
    size: tuple[int, int]
    key: str
    faces: list[RestoredFace] = field(default_factory=list)


class Steps:
    """The steps under one batch's policy.

    Args:
        context: of the run; only the thread that made this uses it for more than settings, the store and reading.
        model: the engine.
        restorer: gives the face model; asked only where the policy wants it.
    """

    def __init__(self, context: StageContext, model: Engine, restorer: Callable[[], FaceRestorer]) -> None:
        self.context, self.model = context, model
        self._restorer = restorer
        self._decoder = decoder(context.services)  # made here: what holds it is not for threads
        self._decoding = self._over = False
        self._ended = time.monotonic()

    def read(self, work: Work) -> Picture:
        """Read and decode an original; in any thread, in one at a time.

        Raises:
            Refused, Failed: the reason for this picture.
        """
        began = time.monotonic()
        if work.subject.digest is None or work.recipe is None:
            raise Failed("internal", "An unread picture was to be enhanced.")
        if self._over:
            raise Failed("decoder_crashed", "Nobody waits for this picture any more.")
        with open_original(self.context.services, work.subject.digest) as original:
            self._decoding = True
            try:
                still = self._decoder.still(original.fd)
            finally:
                self._decoding = False
        if still.animated:
            raise Refused("unsupported", "It is an animation; only pictures that stand still are enhanced.")
        outscale = self.context.policy.enhance_outscale
        size = self.model.output_size(still.pixels.shape[0], still.pixels.shape[1], outscale)
        return Picture(work, began, still, self.model.prepare(still.pixels, outscale), size, self._key(work))

    def interrupt(self) -> None:
        """Let `read` in another thread end at once; what it was reading is done again another time."""
        self._over = True
        if self._decoding:
            self._decoder.interrupt()

    def restore_faces(self, picture: Picture) -> None:
        """Find and restore faces where they are wanted; in the thread that owns the models.

        Raises:
            Failed: `out_of_memory`, `model_failed`.
        """
        from mirror_realm_assets.enhance.layers import taken_apart

        policy = self.context.policy
        if policy.enhance_faces:
            picture.faces = self._restorer().restored(
                taken_apart(picture.still.pixels).colours,
                weight=policy.enhance_faces_weight,
                min_size=policy.enhance_faces_min_size,
            )

    def encode(self, picture: Picture, rows: Iterable[Pixels], file: BinaryIO) -> None:
        """Write the result's file from the engine's rows, and go back to its beginning; in any thread.

        Raises:
            Failed: see `codec.encode_rows`.
        """
        from mirror_realm_assets.enhance.codec import Style, encode_rows
        from mirror_realm_assets.enhance.faces import with_faces

        policy, still = self.context.policy, picture.still
        finished: Iterable[Pixels] = self.model.finished(picture.prepared, rows)
        if picture.faces:
            original = (still.pixels.shape[0], still.pixels.shape[1])
            finished = with_faces(finished, picture.faces, original, picture.size)
        style = Style(policy.enhance_format, policy.enhance_quality, still.icc, still.exif)
        encode_rows(finished, picture.size, style, file, self.context.services.scratch())
        file.seek(0)

    def verify(self, picture: Picture, stored: StoredObject) -> list[bytes]:
        """Read the stored result back; in any thread. Success is recorded only of what is whole and of the right size.

        Returns:
            Small pictures, before and after.

        Raises:
            Failed: `not_verified`, `store_corrupt`, `store_failed`.
        """
        from mirror_realm_assets.enhance.codec import small
        from mirror_realm_assets.enhance.probing import probe_file

        height, width = picture.size
        with self.context.services.store.local_path(stored.key, stored.sha256) as path:
            found = probe_file(path)
            after = small(path)
        if (found.width, found.height) != (width, height):
            raise Failed("not_verified", f"The stored picture is {found.width}x{found.height}, not {width}x{height}.")
        return [small(picture.still.pixels), after]

    def done(self, picture: Picture, stored: StoredObject, intents: Sequence[int], pictures: Sequence[bytes]) -> Result:
        """What is to be recorded of a picture that was made; in the thread that made this."""
        output = {
            "key": stored.key,
            "sha256": stored.sha256,
            "bytes": stored.size,
            "width": picture.size[1],
            "height": picture.size[0],
            "model": self.model.name,
            "precision": self.model.precision,
            "device": self.model.device,
        }
        finding = Finding("ok", output, seconds=self._seconds(picture.began))
        return Result(picture.work, finding, [("enhanced", stored)], intents, pictures=pictures)

    def failed(self, work: Work, error: BaseException, began: float | None = None) -> Result:
        """What is to be recorded of one that was not; in the thread that made this.

        Raises:
            LeaseLost, SetupError, SystemicFailure: unchanged, because they are not about this picture alone.
        """
        return Result(work, finding_of(error, seconds=self._seconds(began)))

    def _seconds(self, began: float | None) -> float:
        """Since the result before this one, or since this one's beginning: over many pictures the time they took."""
        last, self._ended = self._ended, time.monotonic()
        return self._ended - max(last, began or last)

    def _key(self, work: Work) -> str:
        from mirror_realm_assets.enhance.codec import SUFFIXES

        suffix = SUFFIXES[self.context.policy.enhance_format]
        return keys.derived_key("enhanced_images", work.key.image_digest, work.subject.part, work.key.recipe, suffix)
