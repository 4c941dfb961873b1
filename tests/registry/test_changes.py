"""What a declaration changes in the registry: shown, and done all or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mirror_realm_assets.catalog import activity, sources
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.policy import SourcePolicy
from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.registry import changes
from mirror_realm_assets.registry.changes import Changes
from mirror_realm_assets.registry.declared import Declared


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("family", "scans", "old", "elsewhere"):
        (tmp_path / name).mkdir()
    return tmp_path


def anything(_folder: Path, _policy: SourcePolicy) -> None:
    """Every folder will do."""


def want(folders: Path, name: str, folder: str | None = None, state: Any = "active", **options: Any) -> Declared:
    return Declared(name, folders / (folder or name), state, {k.replace("_", "."): v for k, v in options.items()}, 1)


def apply(catalog: Catalog, *declared: Declared, **how: Any) -> Changes:
    return changes.apply(catalog, declared, anything, **how)


def state_of(catalog: Catalog) -> dict[str, tuple[str, str, dict[str, Any]]]:
    with catalog.read() as conn:
        return {
            one.name: (one.root_display.rsplit("/", 1)[1], one.state, one.policy.as_options())
            for one in sources.all_sources(conn)
        }


def test_what_is_declared_comes_to_be_and_then_nothing_is_left_to_do(catalog: Catalog, folders: Path) -> None:
    declared = (want(folders, "family", enhance_outscale=2.0), want(folders, "scans", state="inactive"))
    planned = changes.plan(catalog, declared, anything)
    assert [one.name for one in planned.added] == ["family", "scans"]
    assert state_of(catalog) == {}  # a plan changes nothing
    apply(catalog, *declared)
    assert state_of(catalog) == {
        "family": ("family", "active", {"enhance.outscale": 2.0}),
        "scans": ("scans", "paused", {}),
    }
    again = apply(catalog, *declared)
    assert not again
    assert again.unchanged == ["family", "scans"]


def test_an_option_that_is_not_named_any_more_has_its_default_again(catalog: Catalog, folders: Path) -> None:
    apply(catalog, want(folders, "family", enhance=False, ignore=["*.tmp"]))
    found = apply(catalog, want(folders, "family", ignore=["*.bak"]))
    (change,) = found.changed
    assert change.fields == {"enhance": (False, True), "ignore": (["*.tmp"], ["*.bak"])}
    assert state_of(catalog)["family"][2] == {"ignore": ["*.bak"]}


def test_a_source_that_is_not_named_stays_unless_it_is_to_go(catalog: Catalog, folders: Path) -> None:
    apply(catalog, want(folders, "family"), want(folders, "old"))
    assert apply(catalog, want(folders, "family")).others == ["old"]
    assert "old" in state_of(catalog)
    assert apply(catalog, want(folders, "family"), remove=True).removed == ["old"]
    assert set(state_of(catalog)) == {"family"}
    assert [one.name for one in apply(catalog, want(folders, "family"), want(folders, "old")).added] == ["old"]


def test_states_follow_and_who_paused_it_by_hand_is_overruled(catalog: Catalog, folders: Path) -> None:
    apply(catalog, want(folders, "family"))
    with catalog.write() as conn:
        sources.set_state(conn, "family", "paused", "by hand")
    (change,) = apply(catalog, want(folders, "family")).changed
    assert change.fields == {"state": ("inactive", "active")}
    assert state_of(catalog)["family"][1] == "active"


def test_another_folder_is_taken_only_if_it_is_there(catalog: Catalog, folders: Path) -> None:
    apply(catalog, want(folders, "family"))
    assert apply(catalog, want(folders, "family", "elsewhere")).changed[0].fields["folder"] == (
        str(folders / "family"),
        str(folders / "elsewhere"),
    )
    for name, folder in (("family", "nowhere"), ("new", "nowhere")):
        with pytest.raises(SetupError) as caught:
            apply(catalog, want(folders, name, folder))
        assert caught.value.code == "folder_missing"


def test_a_folder_that_is_away_now_is_no_fault_of_a_source_that_has_it(catalog: Catalog, folders: Path) -> None:
    apply(catalog, want(folders, "old"))
    (folders / "old").rmdir()  # a drive that is not plugged in
    assert apply(catalog, want(folders, "old")).unchanged == ["old"]
    assert apply(catalog, want(folders, "old", enhance=False)).changed


def test_one_fault_and_nothing_is_changed(catalog: Catalog, folders: Path) -> None:
    apply(catalog, want(folders, "family"))

    def no_scans(folder: Path, _policy: SourcePolicy) -> None:
        if folder.name == "scans":
            raise SetupError("invalid_argument", "not this one")

    with pytest.raises(SetupError):
        changes.apply(catalog, [want(folders, "family", enhance=False), want(folders, "scans")], no_scans)
    assert state_of(catalog) == {"family": ("family", "active", {})}


def test_every_change_stands_in_the_history(catalog: Catalog, folders: Path) -> None:
    apply(catalog, want(folders, "family"))
    apply(catalog, want(folders, "family", state="inactive", enhance=False))
    apply(catalog, remove=True)
    with catalog.read() as conn:
        told = [one.action for one in activity.entries(conn, source="family")]
    assert sorted(told) == ["source_added", "source_changed", "source_paused", "source_removed"]
