"""All settings, read from the environment in one place.

What belongs here: every `MIRROR_REALM_*` variable with its default and its meaning. Nothing else in the package reads
`os.environ` for configuration. What does not belong here: the policy of a single source (`catalog.policy`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError, computed_field
from pydantic_settings import BaseSettings, SettingsConfigDict

from mirror_realm_assets.errors import SetupError

_GIB = 1024**3


FORMATS = 2
"""Which formats are read, as a number that grows with them: what was refused as `unsupported` before is read again.

1 was pictures; 2 added raw files of cameras, videos and documents.
"""


def _default_home(data_home: Path | None) -> Path:
    return (data_home or Path.home() / ".local" / "share") / "mirror-realm"


class Settings(BaseSettings):
    """Settings of one process; read it with `Settings.read()`, in tests with `Settings.at(home)`."""

    model_config = SettingsConfigDict(env_prefix="MIRROR_REALM_", frozen=True, extra="ignore", populate_by_name=True)

    xdg_data_home: Path | None = Field(default=None, validation_alias="XDG_DATA_HOME")
    configured_home: Path | None = Field(
        default=None, validation_alias="MIRROR_REALM_HOME", description="Everything we keep."
    )
    configured_dagster_home: Path | None = Field(
        default=None, validation_alias="DAGSTER_HOME", description="Dagster's home."
    )
    env: Literal["local", "production"] = Field(
        default="local",
        description="`production` wants PostgreSQL for catalog and Dagster, and a bucket for the store.",
    )
    # Not guessed from being in a pod: `mirror-realm up` works in one as anywhere else.
    launcher: Literal["process", "kubernetes"] = Field(
        default="process",
        description="Where runs and steps run: processes of this machine, or Jobs of a Kubernetes cluster.",
    )
    step_service_account: str | None = Field(
        default=None, description="Of pods of steps, which need no right; without it that of the run's pod."
    )
    gpu_image: str | None = Field(
        default=None, description="Image of steps on a GPU, where it is another than that of the other pods."
    )
    gpus: int = Field(
        default=1,
        ge=0,
        description="GPUs of the cluster: so many steps that want one are started at once. With 0 they run on CPUs.",
    )
    # In a database of its own: both keep a table that says how far their schema is.
    dagster_url: str | None = Field(default=None, description="Dagster's PostgreSQL database, for `production`.")
    configured_catalog_url: str | None = Field(default=None, validation_alias="MIRROR_REALM_CATALOG_URL")
    configured_models_dir: Path | None = Field(
        default=None, validation_alias="MIRROR_REALM_MODELS_DIR", description="Weights; in the home unless told."
    )
    configured_store_url: str | None = Field(default=None, validation_alias="MIRROR_REALM_STORE_URL")
    # A store in a bucket. Credentials come from where every client of S3 looks for them, never from here.
    s3_endpoint_url: str | None = Field(default=None, description="Of a service other than Amazon's own.")
    s3_region: str | None = Field(default=None, description="Of the bucket.")
    s3_encryption: Literal["none", "AES256", "aws:kms"] = Field(
        default="none", description="What is asked of the service for every object; a bucket has its own default."
    )
    s3_kms_key_id: str | None = Field(default=None, description="The key of `aws:kms`; the account's own without it.")
    cache_bytes: int = Field(
        default=10 * _GIB, ge=0, description="Copies of a bucket's objects on this machine, in the home."
    )

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: int = Field(default=2, ge=1, description="Threads of one model; more than the cores slows everything.")

    # Limits of one file. Raising one re-evaluates what it refused.
    max_file_bytes: int = Field(default=16 * _GIB, gt=0)
    max_pixels: int = Field(default=500_000_000, gt=0)
    max_frames: int = Field(default=10_000, gt=0)
    decode_seconds: float = Field(default=60.0, gt=0)
    decode_memory_bytes: int = Field(default=6 * _GIB, gt=0)

    proxy_long_side: int = Field(default=1440, ge=64, description="Long side of a proxy in pixels; never enlarged.")
    low_space_bytes: int = Field(default=2 * _GIB, ge=0, description="Below this, enhancement stops, ingest goes on.")

    # Batches and watching.
    batch_items: int = Field(default=1000, ge=1)
    batch_bytes: int = Field(default=4 * _GIB, ge=1)
    batch_seconds: float = Field(default=300.0, gt=0, description="Estimated work of one batch of a backlog.")
    # A tick comes every five seconds, so files collect without waiting; a second more would often cost a whole tick.
    batch_age_seconds: float = Field(default=0.0, ge=0, description="How long the first new file waits for others.")
    watch_seconds: float = Field(default=1.0, gt=0, description="Pause between two polls of a watched folder.")
    quiet_seconds: float = Field(default=2.0, ge=0, description="A file rests this long before it is taken.")
    lane_runs: int = Field(
        default=25, ge=1, description="Queued and running runs of a lane; what else is pending stays in the ledger."
    )
    slice_seconds: float = Field(default=1800.0, gt=0, description="Length of one enhancement run.")

    index_backlog_seconds: float = Field(
        default=180.0,
        ge=0,
        description="While more than 500 files of a source wait for the search lane, its index is published this often "
        "and no more: each round starts a process and reads what is pending, eight processor seconds.",
    )

    # Live partition keys of batches; Dagster's UI and automation suffer from about 10,000.
    prune_above: int = Field(
        default=9000, ge=1, le=100_000, description="With more live batches the oldest finished ones are retired."
    )
    prune_to: int = Field(default=8000, ge=0, le=100_000, description="How many batches are left live then.")
    prune_grace_seconds: float = Field(
        default=3600.0, ge=0, description="A batch stays live so long after it was finished or run."
    )

    purge_days: float = Field(
        default=30.0, ge=0, description="What was made of a deleted file is kept so long, in case it returns."
    )

    run_retention_days: float = Field(
        default=30.0, gt=0, description="Runs that nothing depends on any more are deleted when they are so old."
    )
    activity_retention_days: float = Field(
        default=1096.0, gt=0, description="How long the audit trail is kept, rounded up to whole months."
    )

    # Leases and heartbeats.
    lease_seconds: float = Field(default=60.0, gt=0)
    heartbeat_seconds: float = Field(default=5.0, gt=0)

    host: str = Field(default="127.0.0.1", description="Where servers bind; loopback unless told otherwise.")
    port: int = Field(default=3000, ge=1, le=65535)

    def limits(self) -> dict[str, float]:
        """Today's limits of one file, by the names under which refusals record them."""
        return {
            "max_pixels": self.max_pixels,
            "max_frames": self.max_frames,
            "max_file_bytes": self.max_file_bytes,
            "decode_seconds": self.decode_seconds,
            "decode_memory_bytes": self.decode_memory_bytes,
            "formats": FORMATS,
        }

    @classmethod
    def read(cls) -> Self:
        """The settings of the environment.

        Raises:
            SetupError: `invalid_argument`, naming the first variable that has no valid value.
        """
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            variable = name if name.isupper() else f"MIRROR_REALM_{name.upper()}"
            raise SetupError("invalid_argument", f"{variable} has no valid value: {first['msg']}.") from error

    @classmethod
    def at(cls, home: Path | str, **values: Any) -> Self:
        """The settings of the environment with another home, and with `values` by field name."""
        return cls(configured_home=Path(home), **values)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def home(self) -> Path:
        """Catalog, store, models and Dagster's home: `MIRROR_REALM_HOME`."""
        return (self.configured_home or _default_home(self.xdg_data_home)).expanduser().absolute()

    @property
    def bucket(self) -> tuple[str, str] | None:
        """The store's bucket and the prefix in it (empty, or ending with a slash); None when it is in a folder."""
        parts = urlsplit(self.store_url)
        if parts.scheme != "s3":
            return None
        prefix = unquote(parts.path).strip("/")
        return parts.netloc, f"{prefix}/" if prefix else ""

    @property
    def dagster_home(self) -> Path:
        """Dagster's own home: its configuration, runs and events."""
        return (self.configured_dagster_home or self.home / "dagster").expanduser().absolute()

    @property
    def catalog_url(self) -> str:
        """The catalog's database; SQLite in the home unless told otherwise."""
        return self.configured_catalog_url or f"sqlite:///{self.home / 'catalog.sqlite'}"

    @property
    def store_url(self) -> str:
        """The store: a folder, `file:///folder` or `s3://bucket/prefix`."""
        return self.configured_store_url or str(self.home / "store")

    @property
    def store_folder(self) -> Path | None:
        """The store's folder, or None when it is none."""
        parts = urlsplit(self.store_url)
        if parts.scheme == "file":
            return Path(unquote(parts.path))
        return None if "://" in self.store_url else Path(self.store_url).expanduser().absolute()

    @property
    def cache_dir(self) -> Path:
        """Copies of a bucket's objects; may be deleted at any time."""
        return self.home / "cache"

    @property
    def tiles_file(self) -> Path:
        """Which tiles this machine's memory has held; may be deleted at any time."""
        return self.home / "tiles.json"

    @property
    def models_dir(self) -> Path:
        """Converted and verified weights, one safetensors file a model."""
        return (self.configured_models_dir or self.home / "models").expanduser().absolute()

    @property
    def on_cluster(self) -> bool:
        """Whether runs and steps are Jobs of a Kubernetes cluster."""
        return self.launcher == "kubernetes"
