"""A home for tests of commands, without weights, and commands run in this process."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from lab import Lab

from mirror_realm_assets.catalog import batches
from mirror_realm_assets.cli.main import cli
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.resources.library import open_services
from mirror_realm_assets.stages.engine import run_stage

# What a terminal, rich or a browser would make something of.
HOSTILE = (
    b"<img onerror=alert(1)>.jpg",
    b"[red].jpg",
    b"a\x1b[31mb.jpg",
    b"\xff\xfe.jpg",
    "\x9b2J.jpg".encode(),
    b":smile:.jpg",
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def run_json(*arguments: str) -> Any:
    """The one JSON value on stdout."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def run_lines(*arguments: str) -> list[Any]:
    """The JSON values on the lines of stdout."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@dataclass
class Home:
    """A home whose source `demo` is `lab.folder`."""

    lab: Lab

    def put(self, name: bytes, data: bytes = b"no picture") -> bytes:
        path = os.fsencode(self.lab.folder) + b"/" + name
        Path(os.fsdecode(path)).write_bytes(data)
        return path

    def read(self) -> None:
        """Scan, form, and read what was found; nothing is embedded or enhanced."""
        stages = standard_stages(self.lab.settings)
        # A command closes the services that it opened under the same settings.
        self.lab.services = open_services(self.lab.settings)
        self.lab.form(stages)
        with self.lab.catalog.read() as conn:
            waiting = batches.pending(conn, "search", ["raw_media"])
        for batch in waiting:
            run_stage(stages[0], batch.key, self.lab.services, stages)
