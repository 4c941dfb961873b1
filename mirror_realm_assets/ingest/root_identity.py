"""Whether a source's root is still the folder it was: a mount point without its mount looks like an emptied one.

What belongs here: what a root is known by, and comparing it. What does not: walking (`scan`), what follows (`watch`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

from mirror_realm_assets.errors import SetupError
from mirror_realm_assets.installation import mount_of

Identity = Mapping[str, Any]


def identity_of(root: bytes, disk: Any = os) -> dict[str, Any]:
    """What a folder is known by: device, inode, and from what it is mounted.

    Args:
        root: the folder.
        disk: has `stat`; the system's own by default.

    Raises:
        SetupError: `folder_missing` when there is no such folder or it cannot be looked at.
    """
    try:
        top = disk.stat(root)
    except OSError as error:
        raise SetupError("folder_missing", f"The folder {os.fsdecode(root)} cannot be opened.") from error
    if not stat.S_ISDIR(top.st_mode):
        raise SetupError("folder_missing", f"{os.fsdecode(root)} is no folder.")
    mount = mount_of(os.fsdecode(root))
    found = {"device": top.st_dev, "inode": top.st_ino}
    return found | ({"mount": mount.source, "kind": mount.kind} if mount else {})


def is_same(recorded: Identity, now: Identity) -> bool:
    """Whether it is the same folder on the same device."""
    return (recorded["device"], recorded["inode"]) == (now["device"], now["inode"]) and _mounts_agree(recorded, now)


def may_be_same(recorded: Identity, now: Identity) -> bool:
    """Whether it may be the same folder under another device number, which network drives get at every mount.

    Its files have to prove it.
    """
    return bool(recorded["inode"] == now["inode"] and "mount" in recorded and _mounts_agree(recorded, now))


def _mounts_agree(recorded: Identity, now: Identity) -> bool:
    # Identities of older versions, and of systems without a mount table, name no mount.
    return all(recorded[name] == now[name] for name in ("mount", "kind") if name in recorded and name in now)
