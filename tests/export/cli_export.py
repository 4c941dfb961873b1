"""Commands run in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from mirror_realm_assets.cli.main import cli


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)
