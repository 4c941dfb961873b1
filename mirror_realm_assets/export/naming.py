"""Who gets which name where several want the same: a function of what there is, never of what came first.

What belongs here: settling names that templates made. What does not: making them (`archive.template`), and files.

Names are the same when a file system that ignores case or spells accents its own way would take them for the same. A
name that files of different bytes want, or that is a folder of others, goes to none of them: each gets the first digits
of its digest into its name, as in an archive. So a name never passes from one picture to another that came later.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from mirror_realm_assets.archive.template import suffix_of, with_digest
from mirror_realm_assets.export.sorting import Record, Scratch

_FOLDERS = 10_000  # whose claims are remembered, so that most are made once
_FIXED, _SETTLED, _MOVING = "0", "1", "2"  # in the order in which they come before each other


class Claim(NamedTuple):
    """A file that wants a name.

    Attributes:
        name: which; None of one that can have none.
        sha256: of its bytes; files of equal bytes share a name.
        rank: of those the lowest counts.
        payload: what goes with it; no line end.
    """

    name: str | None
    sha256: str
    rank: str
    payload: str


class _Wish(NamedTuple):
    state: str
    claim: Claim


def key_of(name: str) -> str:
    """What names that may mean the same file have in common."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def settle(claims: Iterable[Claim], taken: Iterable[str], scratch: Scratch) -> Iterator[Claim]:
    """Give each claim a name of its own.

    Args:
        claims: in any order; it makes no difference.
        taken: names that are given away already.
        scratch: for sorting.

    Yields:
        The claims with their names. Of those that want one name for equal bytes the first; one whose every name is
        taken has the name None, which somebody must have brought about.
    """
    wishes: Iterator[_Wish] = itertools.chain(_with_folders(claims), _fixed(taken))
    for rename in (_short, _long, _none):
        wishes = _round(wishes, rename, scratch)
    return (wish.claim for wish in wishes if wish.state != _FIXED)


def _with_folders(claims: Iterable[Claim]) -> Iterator[_Wish]:
    """A wish for each claim, and what keeps its folders from being files."""
    known: OrderedDict[str, None] = OrderedDict()
    for claim in claims:
        yield _Wish(_MOVING, claim)
        yield from _folders(claim.name or "", known)


def _fixed(taken: Iterable[str]) -> Iterator[_Wish]:
    known: OrderedDict[str, None] = OrderedDict()
    for name in taken:
        yield _Wish(_FIXED, Claim(name, "", "", ""))
        yield from _folders(name, known)


def _folders(name: str, known: OrderedDict[str, None]) -> Iterator[_Wish]:
    folder = name.rpartition("/")[0]
    while folder and folder not in known:
        yield _Wish(_FIXED, Claim(folder, "", "", ""))
        known[folder] = None
        if len(known) > _FOLDERS:
            known.popitem(last=False)
        folder = folder.rpartition("/")[0]


def _round(wishes: Iterable[_Wish], rename: Callable[[Claim], Claim], scratch: Scratch) -> Iterator[_Wish]:
    """Let everyone have what no one else wants, and send the others on to their next names."""
    for _key, group in itertools.groupby(scratch.sorted(_records(wishes)), key=lambda record: record[0]):
        yield from _of_one_name(group, rename)


def _of_one_name(group: Iterator[Record], rename: Callable[[Claim], Claim]) -> Iterator[_Wish]:
    distinct = _first_of_equals(_wish(payload) for _key, payload in group)
    first = next(distinct)
    second = next(distinct, None)
    if second is None:
        yield _Wish(_SETTLED, first.claim) if first.state == _MOVING else first
        return
    for wish in itertools.chain((first, second), distinct):
        yield _Wish(_MOVING, rename(wish.claim)) if wish.state == _MOVING else wish


def _first_of_equals(wishes: Iterable[_Wish]) -> Iterator[_Wish]:
    """Of those that are the same bytes the first; they follow each other."""
    last = None
    for wish in wishes:
        if (wish.state, wish.claim.sha256) != last:
            yield wish
        last = (wish.state, wish.claim.sha256)


def _short(claim: Claim) -> Claim:
    return claim._replace(name=with_digest(claim.name or "", claim.sha256))


def _long(claim: Claim) -> Claim:
    """The whole digest for a name, where eight digits of it were not enough."""
    folder, slash, last = (claim.name or "").rpartition("/")
    return claim._replace(name=f"{folder}{slash}{claim.sha256}{suffix_of(last)}")


def _none(claim: Claim) -> Claim:
    return claim._replace(name=None)


def _records(wishes: Iterable[_Wish]) -> Iterator[Record]:
    for state, claim in wishes:
        # As text it sorts by state, then by digest, then by rank.
        yield key_of(claim.name or ""), json.dumps([state, claim.sha256, claim.rank, claim.name, claim.payload])


def _wish(payload: str) -> _Wish:
    state, sha256, rank, name, carried = json.loads(payload)
    return _Wish(state, Claim(name, sha256, rank, carried))
