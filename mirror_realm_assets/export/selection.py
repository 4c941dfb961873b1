"""From the ledger to what an export wants: which pictures, under which names.

What belongs here: choosing among what is there, and making each file's first name. What does not: the query
(`catalog.exports`), and who gets a name that several want (`naming`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mirror_realm_assets.archive.template import FIELDS, PLACE_FIELDS, Subject, Template, when
from mirror_realm_assets.catalog import exports
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.exports import Made, Picture
from mirror_realm_assets.catalog.sources import Source
from mirror_realm_assets.catalog.wants import Rule, wanted
from mirror_realm_assets.export import xmp
from mirror_realm_assets.export.entries import ENHANCED, ORIGINAL, SIDECAR, Entry, Wanted, path_fields, wanted_of
from mirror_realm_assets.export.naming import Claim, settle
from mirror_realm_assets.export.sorting import Scratch

DEFAULT_TEMPLATE = "{source}/{folder}/{filename}"
"""The folders of the source as they are, below its name."""
_FEATURE = "enhanced_images"
_SUFFIX = ".xmp"


class Selection:
    """What is to be exported.

    Args:
        template: of the names.
        kinds: `enhanced`, `original`, or both.
        rule: of the feature `enhanced_images`.

    Raises:
        SetupError: `invalid_argument` for a template that cannot be used.
    """

    def __init__(self, template: str, kinds: Sequence[str], rule: Rule) -> None:
        self.template = Template(template, {**FIELDS, **PLACE_FIELDS})
        self.kinds = tuple(kinds)
        self._rule = rule

    def wanted(
        self, catalog: Catalog, sources: Sequence[Source], taken: Iterator[str], scratch: Scratch
    ) -> Iterator[Wanted]:
        """Every file that is to be there, with a name of its own, each picture before its sidecar.

        Args:
            catalog: the ledger.
            sources: whose pictures.
            taken: names that are given away already.
            scratch: for sorting.

        Yields:
            In no order that matters; one that can have no name has an empty one.
        """
        for claim in settle(self._claims(catalog, sources), taken, scratch):
            found = wanted_of(claim.payload).named(claim.name or "")
            yield replace(found, said=None)
            if found.said and claim.name:
                yield _sidecar(found)

    def _claims(self, catalog: Catalog, sources: Sequence[Source]) -> Iterator[Claim]:
        for source in sources:
            for picture in exports.pictures(catalog, source.id, _FEATURE):
                for each in self._of_picture(source, picture):
                    entry = each.entry
                    yield Claim(entry.name, entry.sha256, f"{entry.source}/{entry.path}", each.as_json())

    def _of_picture(self, source: Source, picture: Picture) -> Iterator[Wanted]:
        said = xmp.merged(picture.said)
        if ORIGINAL in self.kinds:
            entry = self._entry(source, picture, None, picture.digest, picture.size, None, None)
            yield Wanted(entry, None, said)
        made = self._made(source, picture) if ENHANCED in self.kinds else None
        if made is not None:
            key, output = str(made.output["key"]), made.output
            suffix, model = key.rpartition(".")[2], output.get("model")
            facts = (str(output["sha256"]), int(output["bytes"]), str(model) if model else None, made.recipe)
            yield Wanted(self._entry(source, picture, suffix, *facts), key, said)

    def _made(self, source: Source, picture: Picture) -> Made | None:
        """The enhanced picture that is wanted; while that one is not made, the last that was."""
        want = wanted([self._rule], source.policy, picture.facts)[_FEATURE]
        if want.recipe is None or not picture.made:
            return None
        digest = want.recipe.digest
        return next((made for made in picture.made if made.recipe == digest), picture.made[0])

    def _entry(
        self,
        source: Source,
        picture: Picture,
        suffix: str | None,
        sha256: str,
        size: int,
        model: str | None,
        recipe: str | None,
    ) -> Entry:
        place = picture.places[0]
        *folders, file = os.fsdecode(place.path).split("/")
        at = when(picture.taken_at, place.mtime_ns)
        subject = Subject(file, picture.digest, at, suffix, source.name, tuple(folders))
        path, path_b64 = path_fields(place.path)
        kind = ORIGINAL if suffix is None else ENHANCED
        return Entry(
            name=self.template.name(subject),
            source=source.name,
            path=path,
            path_b64=path_b64,
            digest=picture.digest,
            kind=kind,
            of=kind,
            model=model,
            recipe=recipe,
            sha256=sha256,
            bytes=size,
            mtime_ns=place.mtime_ns,
        )


def _sidecar(picture: Wanted) -> Wanted:
    data = xmp.packet(picture.said or {})
    entry = replace(
        picture.entry,
        name=f"{picture.entry.name}{_SUFFIX}",
        kind=SIDECAR,
        model=None,
        recipe=None,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
    )
    return Wanted(entry, None, picture.said)
