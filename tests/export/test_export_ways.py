"""However a folder came to be, with whatever ended its runs, it is in the end what one run into an empty one makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from export_lab import manifest, run, there
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab import Lab

from mirror_realm_assets.export import xmp
from mirror_realm_assets.export.entries import ENHANCED, SIDECAR, Entry, Wanted
from mirror_realm_assets.export.folder import Folder
from mirror_realm_assets.export.manifest import Manifest
from mirror_realm_assets.export.naming import key_of
from mirror_realm_assets.export.selection import Selection

NAMES = ["a", "A", "b", "x/a", "x/b", "x/y/c", "X/d"]
# A state of the library: a text for each name.
states = st.dictionaries(st.sampled_from(NAMES), st.sampled_from("pq"), max_size=5).filter(
    lambda state: len({key_of(name) for name in state}) == len(state)
)
# How many steps a run may take before it is killed, and what a person writes in between.
steps = st.tuples(states, st.none() | st.integers(0, 9), st.none() | st.sampled_from(NAMES))


class _Killed(BaseException):
    pass


def wanted(state: dict[str, str]) -> Iterator[Wanted]:
    """Sidecars, because they need neither a store nor originals."""
    for name, text in state.items():
        data = xmp.packet({"title": text})
        digest = hashlib.sha256(name.encode()).hexdigest()
        sha256 = hashlib.sha256(data).hexdigest()
        entry = Entry(name, "demo", name, None, digest, SIDECAR, ENHANCED, None, None, sha256, len(data), 10**18)
        yield Wanted(entry, None, {"title": text})


def export(lab: Lab, to: Path, state: dict[str, str], kill: int | None = None) -> Any:
    left = iter(range(kill)) if kill is not None else None

    def dying(call: Any) -> Any:
        def made(*args: Any) -> Any:
            if left is not None and next(left, None) is None:
                raise _Killed
            return call(*args)

        return made

    with (
        patch.object(Selection, "wanted", lambda *_: wanted(state)),
        patch.object(Folder, "put", dying(Folder.put)),
        patch.object(Folder, "remove", dying(Folder.remove)),
        patch.object(Manifest, "begin", dying(Manifest.begin)),
        patch.object(Manifest, "_write", dying(Manifest._write)),
        patch.object(Manifest, "end", dying(Manifest.end)),
    ):
        try:
            return run(lab, to, into_existing=True)
        except _Killed:
            return None


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in there(folder) if not name.startswith(".")}


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(steps, max_size=5), states)
def test_a_folder_is_what_the_library_says_and_what_people_wrote_stays(
    lab: Lab, way: list[tuple[dict[str, str], int | None, str | None]], last: dict[str, str]
) -> None:
    with TemporaryDirectory(dir=lab.home.parent) as place:
        to, fresh = Path(place) / "export", Path(place) / "fresh"
        theirs: dict[str, bytes] = {}
        for n, (state, kill, written) in enumerate(way):
            export(lab, to, state, kill)
            if (to / "mirror-realm-export.jsonl").exists():
                for name, line in manifest(to).items():
                    found = hashlib.sha256((to / name).read_bytes()).hexdigest()
                    assert line.get("edited") or found == line["sha256"] or name in theirs
            if written and not (to / written).is_dir() and (to / written).parent.is_dir():
                theirs[written] = f"theirs {n}".encode()
                (to / written).write_bytes(theirs[written])
        for _again in range(2):
            outcome = export(lab, to, last)
        export(lab, fresh, last)
        # A picture cannot take a new spelling of its name that a person has taken.
        assert {key_of(each.entry.name) for each in outcome.failed} <= {key_of(name) for name in theirs}
        assert not (to / ".mirror-realm-export").exists()
        mine = {key_of(name) for name in theirs}
        expected = {name: data for name, data in bytes_of(fresh).items() if key_of(name) not in mine}
        got = bytes_of(to)
        assert {name: data for name, data in got.items() if name in theirs} == theirs
        assert {name: data for name, data in got.items() if key_of(name) not in mine} == expected
        assert json.loads((to / "mirror-realm-export.jsonl").read_text().splitlines()[0])["layout"] == 1
