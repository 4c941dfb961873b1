"""The policy of a source: what its owner wants done with its files.

What belongs here: the options of `sources add --option key=value`, their types and defaults. What does not: settings of
the whole installation (`settings`), and what follows from a policy (`wants`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mirror_realm_assets.errors import SetupError

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


class SourcePolicy(BaseModel):
    """Options of one source, under the names people write (`enhance.max_pixels`)."""

    # Not by field name as well: two spellings of one option would not know which of them is the last.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enhance: bool = True
    enhance_model: str = Field(default="realesrgan-x4plus", alias="enhance.model")
    enhance_engine: Literal["native", "realesrgan"] = Field(default="native", alias="enhance.engine")
    enhance_outscale: float = Field(default=4.0, alias="enhance.outscale", gt=0, le=8)
    enhance_denoise_strength: float | None = Field(default=None, alias="enhance.denoise_strength", ge=0, le=1)
    enhance_faces: bool = Field(default=False, alias="enhance.faces")
    enhance_faces_model: str = Field(default="gfpgan-v1.4", alias="enhance.faces_model")
    enhance_faces_weight: float = Field(default=0.5, alias="enhance.faces_weight", ge=0, le=1)
    enhance_faces_min_size: int = Field(default=32, alias="enhance.faces_min_size", ge=12)
    enhance_max_pixels: int = Field(default=1_000_000, alias="enhance.max_pixels", gt=0)
    enhance_format: Literal["png", "jpeg", "webp", "tiff"] = Field(default="png", alias="enhance.format")
    enhance_quality: int | None = Field(default=None, alias="enhance.quality", ge=1, le=100)
    archive: str | None = None
    archive_template: str = Field(default="year={year}/month={month}/{filename}", alias="archive.template")
    archive_what: Literal["originals", "enhanced", "both"] = Field(default="both", alias="archive.what")
    originals: Literal["reference", "copy"] = "reference"
    embedder: str = "efficientnet-lite0"
    faces: bool = False
    watch: Literal["auto", "native", "poll"] = "auto"
    ignore: tuple[str, ...] = ()
    budget_device_seconds_day: float | None = Field(default=None, alias="budget.device_seconds_day", gt=0)
    budget_bytes_day: int | None = Field(default=None, alias="budget.bytes_day", gt=0)
    budget_read_mb_s: float | None = Field(default=None, alias="budget.read_mb_s", gt=0)
    quiet_hours: str | None = Field(default=None, pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")

    @field_validator("archive", mode="before")
    @classmethod
    def _none_when_empty(cls, value: Any) -> Any:
        """`archive=` takes the archive away."""
        return value or None

    def is_quiet(self, at: datetime) -> bool:
        """Whether the source is left alone at that local time: from the first time of `quiet_hours` to the second."""
        if self.quiet_hours is None:
            return False
        begin, end = self.quiet_hours.split("-")
        clock = at.strftime("%H:%M")
        return begin <= clock < end if begin <= end else clock >= begin or clock < end

    def as_options(self) -> dict[str, Any]:
        """The options that differ from their defaults, under the names people write."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def merged(self, *overrides: Mapping[str, Any] | None) -> SourcePolicy:
        """This policy with `overrides` (of a workflow node, then of a request) on top, the last one winning."""
        options = self.as_options()
        for override in overrides:
            options.update(override or {})
        return parse_policy(options)


def parse_policy(options: Mapping[str, Any]) -> SourcePolicy:
    """A policy from options by name.

    Raises:
        SetupError: `invalid_argument`, naming the first wrong option and what it may be.
    """
    try:
        return SourcePolicy.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(option_names()))
            raise SetupError(
                "invalid_argument", f"There is no option {name!r}.", remedy=f"Options are: {known}."
            ) from error
        raise SetupError("invalid_argument", f"Option {name!r}: {first['msg']}.") from error


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """`key=value` words as options; `ignore` may stand several times.

    Raises:
        SetupError: `invalid_argument` for a word without `=`.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise SetupError("invalid_argument", f"{pair!r} is not of the form key=value.")
        if key == "ignore":
            options.setdefault("ignore", []).append(value)
        else:
            options[key] = value
    return options


def check_source_name(name: str) -> str:
    """`name`, if it is a valid source name.

    The grammar keeps a batch key within 63 characters, so that it is a valid Kubernetes label.

    Raises:
        SetupError: `invalid_argument` otherwise.
    """
    if not _NAME.fullmatch(name):
        raise SetupError(
            "invalid_argument",
            f"{name!r} is no source name.",
            remedy="Use 1 to 40 of a-z, 0-9 and -, with a letter or digit at both ends.",
        )
    return name


def option_names() -> set[str]:
    """The names of all options, as people write them."""
    return {field.alias or name for name, field in SourcePolicy.model_fields.items()}
