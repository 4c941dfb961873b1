"""Mirror Realm on the small cluster, with PostgreSQL and S3, for tests.

What belongs here: what `deploy/` makes of a cluster, with processes in place of the Deployments (code server, daemon,
watcher) and runs and steps as Jobs. What does not: asserting anything.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
import yaml
from cluster_process import IMAGE, NAMESPACE, SmallCluster
from postgres import Server
from s3_server import S3Server

from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog

REPOSITORY = Path(__file__).resolve().parents[2]
_HOME, _DAGSTER_HOME = "/var/lib/mirror-realm", "/var/lib/dagster"
_PR_SET_PDEATHSIG = 1
_BUCKET = "cluster"
_SECRET = ("MIRROR_REALM_CATALOG_URL", "MIRROR_REALM_DAGSTER_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


class OnCluster:
    """An installation.

    Args:
        cluster: where runs and steps go.
        server: for its two databases.
        bucket: for its store and logs.
        models_dir: the weights, which the image would carry.
        module: holds the definitions.
        env: more of the settings.
    """

    def __init__(
        self,
        cluster: SmallCluster,
        server: Server,
        bucket: S3Server,
        models_dir: Path,
        *,
        module: str = "mirror_realm_assets.definitions",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.cluster, self.bucket, self.module = cluster, bucket, module
        self.photos = cluster.folder / "photos"
        self.photos.mkdir()
        self.home = cluster.folder / "home"  # of every pod, and of the processes beside them
        prefix = f"{server.create()}"
        client: Any = bucket.client()
        if _BUCKET not in {found["Name"] for found in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=_BUCKET)
        self.prefix = prefix
        self.settings = {
            "MIRROR_REALM_ENV": "production",
            "MIRROR_REALM_LAUNCHER": "kubernetes",
            "MIRROR_REALM_NAMESPACE": NAMESPACE,
            "MIRROR_REALM_IMAGE": IMAGE,
            "MIRROR_REALM_HOME": str(self.home),
            "DAGSTER_HOME": str(cluster.folder / "dagster"),
            "MIRROR_REALM_STEP_SERVICE_ACCOUNT": "mirror-realm-code",
            "MIRROR_REALM_MODELS_DIR": str(models_dir),
            "MIRROR_REALM_CATALOG_URL": server.url(server.create()),
            "MIRROR_REALM_DAGSTER_URL": server.url(server.create()),
            "MIRROR_REALM_STORE_URL": f"s3://{_BUCKET}/{prefix}",
            "AWS_ENDPOINT_URL_S3": bucket.url,  # heeded by the store and by Dagster's logs
            "AWS_DEFAULT_REGION": "us-east-1",
            "MIRROR_REALM_LOGS_BUCKET": _BUCKET,
            "MIRROR_REALM_LOGS_PREFIX": f"{prefix}/compute-logs",
            "MIRROR_REALM_LEASE_SECONDS": "10",
            "MIRROR_REALM_HEARTBEAT_SECONDS": "2",
            "MIRROR_REALM_WATCH_SECONDS": "0.5",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            **(env or {}),
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._configure()
        self.command("init")
        self.catalog = Catalog(self.settings["MIRROR_REALM_CATALOG_URL"])

    def command(self, *words: str) -> str:
        """`mirror-realm WORDS`, as in the migration's Job."""
        return self._run([sys.executable, "-m", "mirror_realm_assets.cli", *words])

    def dagster(self, *words: str) -> str:
        """`dagster WORDS -w WORKSPACE`, as in the daemon's pod."""
        return self._run([sys.executable, "-m", "dagster", *words, "-w", str(self.cluster.folder / "workspace.yaml")])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *, watcher: bool = True) -> None:
        """Code server, daemon and watcher."""
        sockets = self.cluster.folder / "code"
        workspace = self.cluster.folder / "workspace.yaml"
        server = {"socket": str(sockets), "location_name": "mirror_realm"}
        workspace.write_text(json.dumps({"load_from": [{"grpc_server": server}]}))
        dagster = [sys.executable, "-m", "dagster"]
        inject = "--inject-env-vars-from-instance"
        self._spawn(
            "code-server",
            [
                *dagster,
                "api",
                "grpc",
                "--socket",
                str(sockets),
                "--location-name",
                "mirror_realm",
                "-m",
                self.module,
                inject,
            ],
        )
        wait_for(sockets.exists, 60)
        self._spawn("daemon", [str(Path(sys.executable).with_name("dagster-daemon")), "run", "-w", str(workspace)])
        if watcher:
            self._spawn("watcher", [sys.executable, "-m", "mirror_realm_assets.cli", "watch"])

    def stop(self) -> None:
        for name in ("daemon", "watcher", "code-server"):
            if process := self._processes.pop(name, None):
                process.send_signal(signal.SIGTERM)
                process.wait(30)

    def close(self) -> None:
        self.stop()
        self.catalog.close()

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        before = {name: os.environ.get(name) for name in self._env}
        os.environ.update(self._env)
        try:
            with dg.DagsterInstance.from_config(self._env["DAGSTER_HOME"]) as instance:
                yield instance
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def runs(self, job: str | None = None) -> list[dg.DagsterRun]:
        """Newest first."""
        with self.instance() as instance:
            return list(instance.get_runs(dg.RunsFilter(job_name=job)))

    def features(self) -> dict[tuple[str, str], int]:
        """How many findings there are by feature and status."""
        f = t.features.c
        with self.catalog.read() as conn:
            rows = conn.execute(sa.select(f.feature, f.status, sa.func.count()).group_by(f.feature, f.status))
            return {(row[0], row[1]): row[2] for row in rows}

    def pods(self, of: str) -> list[Any]:
        """Pods of a kind: `run_worker` or `step_worker`."""
        selector = f"app.kubernetes.io/component={of}"
        return list(self.cluster.core().list_namespaced_pod(NAMESPACE, label_selector=selector).items)

    def jobs(self, of: str) -> list[Any]:
        selector = f"app.kubernetes.io/component={of}"
        return list(self.cluster.batch().list_namespaced_job(NAMESPACE, label_selector=selector).items)

    def told(self) -> str:
        """What the programs wrote last, for a test that fails."""
        logs = [self.cluster.folder / f"{name}.log" for name in ("daemon", "code-server", "watcher")]
        logs += sorted((self.cluster.folder / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime)[-4:]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in logs if path.exists())

    @property
    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.settings, "PYTHONUNBUFFERED": "1"}

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.cluster.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env=self._env,
                cwd=self.cluster.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )

    def _configure(self) -> None:
        """The instance's configuration, ConfigMap and Secret; a path of an image becomes one of this machine."""
        dagster_home = Path(self.settings["DAGSTER_HOME"])
        text = (REPOSITORY / "deploy" / "base" / "dagster.yaml").read_text()
        config = yaml.safe_load(text.replace(_HOME, str(self.home)).replace(_DAGSTER_HOME, str(dagster_home)))
        launcher = config["run_launcher"]["config"]
        launcher |= {"load_incluster_config": False, "kubeconfig_file": str(self.cluster.kubeconfig("mirror-realm"))}
        keep = {"home", "dagster-home", "dagster"}
        photos = {"name": "photos", "hostPath": {"path": str(self.photos)}}
        launcher["volumes"] = [*(found for found in launcher["volumes"] if found["name"] in keep), photos]
        launcher["volume_mounts"] = [
            *(found for found in launcher["volume_mounts"] if found["name"] in keep),
            {"name": "photos", "mountPath": str(self.photos), "readOnly": True},
        ]
        config["compute_logs"]["config"] |= {"upload_interval": 2}
        config["run_monitoring"] |= {"poll_interval_seconds": 2, "free_slots_after_run_end_seconds": 5}
        dagster_home.mkdir(parents=True)
        (dagster_home / "dagster.yaml").write_text(yaml.safe_dump(config))
        core = self.cluster.core()
        plain = {name: value for name, value in self.settings.items() if name not in _SECRET}
        core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "mirror-realm"}, "data": plain})
        core.create_namespaced_config_map(
            NAMESPACE, {"metadata": {"name": "mirror-realm-dagster"}, "data": {"dagster.yaml": yaml.safe_dump(config)}}
        )
        secret = {name: b64encode(self.settings[name].encode()).decode() for name in _SECRET}
        core.create_namespaced_secret(NAMESPACE, {"metadata": {"name": "mirror-realm"}, "data": secret})


def wait_for(what: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What it returns, as soon as that is something."""
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            raise AssertionError("it did not happen in time")
        time.sleep(0.5)
    return found


def put(folder: Path, photos: Mapping[str, npt.NDArray[np.uint8]], count: int = 3, side: int = 48) -> None:
    """So many different pictures, moved in whole."""
    from PIL import Image

    names = sorted(photos)
    for number in range(count):
        pixels = np.roll(photos[names[number % len(names)]], number // len(names), axis=1)
        hidden = folder / f".{number}.part"
        Image.fromarray(pixels).resize((side, side)).save(hidden, "PNG")
        hidden.rename(folder / f"photo-{number}.png")


def told(home: OnCluster, what: Callable[[], Any], seconds: float = 180.0) -> Any:
    """What it returns as soon as that is something; else what the programs wrote last."""
    try:
        return wait_for(what, seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; {home.features()}\n{home.told()}") from None


def statuses(home: OnCluster, job: str) -> list[dg.DagsterRunStatus]:
    """Of the runs of a job, newest first."""
    return [run.status for run in home.runs(job)]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):  # ignored in what a shell puts into the background
        signal.signal(number, signal.SIG_DFL)  # and Dagster takes SIGTERM for SIGINT
