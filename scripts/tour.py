"""What `make run` does: a guided tour with a dozen small photos, and then the service until Ctrl-C.

What belongs here: which stages there are, in which order, and what is said. What does not: printing (`telling`), time
and disk (`plan`), processes (`serving`), the photos (`demo`), and everything that a person can call by itself: the tour
uses the same commands.

Run again it goes on where it was: what is there already takes no time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import demo
import plan
import results
from progress import Pace, progress
from results import Results
from serving import Interrupted, Service, run_command
from telling import Teller

from mirror_realm_assets import address
from mirror_realm_assets.catalog import sources, status
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.catalog.status import SourceStatus
from mirror_realm_assets.cli.output import human_seconds, safe
from mirror_realm_assets.errors import MirrorRealmError, SetupError, as_error
from mirror_realm_assets.liveness import held
from mirror_realm_assets.pipeline import standard_stages
from mirror_realm_assets.ports import free_port, wait_ready
from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stop_signals import Stop, stop_signals
from mirror_realm_assets.weights.hardware import start_environment
from mirror_realm_assets.weights.registry import NEEDED

# After these a person is told where to look.
_NO_BATCH_SECONDS = 60.0
_NO_CHANGE_SECONDS = 90.0
_UI_SECONDS = 120.0
_POLL_SECONDS = 1.0
_PORTS = 100


class Broken(Exception):
    """A stage cannot be done; what is said about it is in the arguments: what happened, and the remedy."""


@dataclass
class Tour:
    """One tour through one home.

    Attributes:
        settings: of this process.
        teller: prints.
        stop: asked for between any two steps.
        photos: which are made.
        side: their width.
        port: the wished one of the UI.
    """

    settings: Settings
    teller: Teller
    stop: Stop
    photos: tuple[demo.Photo, ...]
    side: int
    port: int

    def __post_init__(self) -> None:
        home = self.settings.home
        self.folder = home / demo.FOLDER
        self.results = Results(self.settings, self.teller, self.stop, self.folder, self.photos)
        self.service = Service(home / "logs" / "up.log")
        self.source = ""
        self.url = ""
        self.did_something = False
        self._catalog: Catalog | None = None

    def run(self) -> int:
        """The tour, and then the service until the end is asked for; returns the exit status."""
        try:
            self._announce()
            self._prepare()
            self._serve()
            self._show_work()
            self._show_results()
            self._say_what_next()
            self._keep_running()
        except Interrupted:
            return self._end()
        except (Broken, MirrorRealmError) as error:
            happened, remedy = (error.message, error.remedy) if isinstance(error, MirrorRealmError) else error.args
            self.teller.trouble(happened, remedy)
            self._end()
            return 1
        finally:
            self.service.end(self.stop)  # whatever happened, nothing is left
            if self._catalog is not None:
                self._catalog.close()
        return 0

    # --- before anything starts ---

    def _announce(self) -> None:
        s = self.settings
        pid = held(s.home / "up.lock") if s.home.is_dir() else None
        if pid:
            raise Broken(
                f"Process {pid} is serving this home already.",
                f"Look at {address.url(s)}, or end it (Ctrl-C where it runs) and try again.",
            )
        plan.announce(self.teller, s, photos=len(self.photos), side=self.side, again=self.results.sheet.exists())

    # --- home, weights, photos ---

    def _prepare(self) -> None:
        teller = self.teller
        teller.stage(1, "The home: everything that is kept")
        self._command("init", what="The home cannot be made")
        teller.fact(f"{self.settings.home}")
        teller.stage(2, "The weights of the models")
        with teller.waiting("fetching") as waiting:
            began = time.monotonic()

            def told(line: str) -> None:
                slow = " (slow: check the network; it goes on)" if time.monotonic() - began > 120 else ""
                waiting.at(f"{line.strip()}{slow}")

            self._command("models", "fetch", what="The weights cannot be fetched", on_line=told)
        for spec in NEEDED:
            teller.fact(f"{spec.name}: {spec.title}")
        teller.stage(3, "The photos")
        written = demo.make_photos(self.folder, self.photos, side=self.side)
        self.did_something = written > 0
        source = demo.register(self.settings)
        self.source = source.name
        how = f"{written} new ones" if written else f"{len(self.photos)} from last time"
        teller.fact(f"{how} in {self.folder}, registered as the source {self.source}")
        self._pause(0)

    def _command(self, *words: str, what: str, on_line: Callable[[str], None] = lambda line: None) -> str:
        """Run one of our commands that the tour cannot do without; returns what it printed."""
        done = run_command(*words, stop=self.stop, on_line=on_line)
        if done.status:
            raise Broken(
                f"{what}: {done.last_words}", "Then run `make run` again: it goes on from there. `mirror-realm doctor`?"
            )
        return done.output

    # --- the service ---

    def _serve(self) -> None:
        teller, host = self.teller, self.settings.host
        teller.stage(4, "The service")
        port = self._free_port(self.port)
        if port != self.port:
            teller.trouble(f"Port {self.port} is taken by another program, so the UI is at {port}.")
        self.url = f"http://{host}:{port}"
        self.service.start(host, port)
        with teller.waiting("starting") as waiting:
            end = time.monotonic() + _UI_SECONDS
            while not wait_ready(f"{self.url}/server_info", 0.0):
                self._require_service()
                if time.monotonic() > end:
                    logs = self.service.log.parent
                    raise Broken(
                        f"The UI does not answer at {self.url}.",
                        f"Look into {logs}/code-server.log and {logs}/webserver.log.",
                    )
                waiting.at("code server, webserver, daemon, watcher")
                self._pause(0.5)
        teller.fact(f"The UI is at {self.url}; what the service says is in {self.service.log}")
        teller.look(f"{self.url}{address.LINEAGE}", "the lineage: from folders to an index")

    def _free_port(self, wished: int) -> int:
        """The wished port or the next free one: a tour has nobody who relies on a number."""
        for port in range(wished, min(wished + _PORTS, 65_536)):
            if free_port(self.settings.host, port):
                return port
        raise SetupError("port_taken", f"The ports {wished} to {wished + _PORTS - 1} are all taken.")

    def _require_service(self, *, told: bool = False) -> None:
        """Tell what the service says, all of it or only what is wrong, and make sure that it runs."""
        for line in self.service.news():
            if "; it is started again in" in line:
                self.teller.trouble(line)
            elif told:
                self.teller.fact(line)
        ended = self.service.status
        if ended is not None:
            self.teller.trouble(f"The service has ended with status {ended}. It said:")
            for line in self.service.last_lines():
                self.teller.fact(f"| {line}")
            raise Broken(
                f"All of it is in {self.service.log.parent}.",
                "`mirror-realm doctor` says what is missing; then `make run` goes on from there.",
            )

    # --- the work ---

    def _show_work(self) -> None:
        teller, began = self.teller, time.monotonic()
        teller.stage(5, "The photos become searchable")
        found = self._wait("reading and embedding", "embeddings")
        ok, seconds = found.features["embeddings"]["ok"], time.monotonic() - began
        self._say_done(f"{ok} photos are searchable", seconds)
        teller.look(f"{self.url}/assets/raw_media", "an asset; each partition of it is a batch of files")
        teller.look(f"{self.url}/runs", "the runs that did it")
        self._say_failures(found)
        began = time.monotonic()
        teller.stage(6, "They are enhanced, by Real-ESRGAN")
        if not progress(found, "enhanced_images")[2]:
            teller.look(f"{self.url}/automation", "the sensors: what asks for the runs")
            teller.fact("Until then search works already: the search lane never waits for enhancement.")
        found = self._wait("enhancing", "enhanced_images")
        self._say_done(f"{found.features['enhanced_images']['ok']} photos are enhanced", time.monotonic() - began)
        teller.look(f"{self.url}/assets/enhanced_images", "its materializations show before and after")
        self._say_failures(found)

    def _wait(self, title: str, feature: str) -> SourceStatus:
        """Look at the ledger until a stage is over; a standstill is told with where to look."""
        last: object = None
        changed = time.monotonic()
        told = False
        pace = Pace()
        with self.teller.waiting(title) as waiting:
            while True:
                found = self._counts()
                done, total, over = progress(found, feature)
                if over:
                    return found
                self._require_service()
                counted = (found.files, found.batches, found.features)
                if counted != last:
                    last, changed, told = counted, time.monotonic(), False
                elif not told and self._hint(found, time.monotonic() - changed):
                    told = True
                waiting.at(pace.left(done, total, time.monotonic()), done, total)
                self._pause(_POLL_SECONDS)

    def _hint(self, found: SourceStatus, still: float) -> bool:
        """Say what to look at when nothing has happened for a while; returns whether it was said."""
        if found.state != "active":
            raise Broken(
                f"The source {self.source} is {found.state}: {found.state_reason or 'by hand'}.",
                f"Mend that, then `mirror-realm sources resume {self.source}`.",
            )
        if not found.batches and still > _NO_BATCH_SECONDS:
            self.teller.trouble(
                f"No batch was formed for {still:.0f} s.",
                f"{self.url}/automation shows whether the sensors tick; `mirror-realm doctor` looks at everything.",
            )
            return True
        if still > _NO_CHANGE_SECONDS:
            self.teller.trouble(
                f"Nothing has changed for {still:.0f} s.",
                f"{self.url}/runs shows what is running; logs are in {self.service.log.parent}; `mirror-realm doctor`.",
            )
            return True
        return False

    def _say_done(self, words: str, seconds: float) -> None:
        if seconds > 2 * _POLL_SECONDS:
            self.did_something = True
            words = f"{words}, after {human_seconds(seconds)}"
        self.teller.fact(words)

    def _say_failures(self, found: SourceStatus) -> None:
        failed = sum(counts["failed"] for counts in found.features.values())
        if failed:
            self.teller.trouble(f"{failed} pictures failed.", "`mirror-realm files --status failed` says why.")

    def _counts(self) -> SourceStatus:
        if self._catalog is None:
            self._catalog = Catalog(self.settings.catalog_url)
        rules = [stage.rule for stage in standard_stages(self.settings)]
        with self._catalog.read() as conn:
            return status.of_source(conn, sources.get(conn, self.source), rules)

    # --- the results ---

    def _show_results(self) -> None:
        self.teller.stage(7, "What came of it")
        results, teller = self.results, self.teller
        if not self.did_something and results.are_there:
            teller.fact("Nothing is new since these were made:")
            for file in results.files:
                teller.look(file.as_uri(), "")
            return
        results.make(self.source)

    def _say_what_next(self) -> None:
        s, say = self.settings, self.teller.say
        command = _command_path()
        say()
        say("[bold]Where everything is[/]")
        for name, where in (
            ("home", s.home),
            ("photos", self.folder),
            ("store", s.store_url),
            ("pages", self.results.folder),
            ("logs", self.service.log.parent),
        ):
            say(f"  {name:<8}{_safe(where)}")
        say()
        say("[bold]What to do next[/]")
        say(f"  Drop a photo into {_safe(self.folder)}:")
        say("  it becomes searchable, then enhanced, by itself. Or take your own folder, in another terminal:")
        if s.configured_home is not None:
            say(f"    export MIRROR_REALM_HOME={_safe(s.home)}")
        say(f"    {_safe(command)} sources add family --folder ~/Pictures")
        say(f"    {_safe(command)} status --watch")
        say(f'    {_safe(command)} search "{results.WORDS}" --html found.html')
        say(f"    {_safe(command)} doctor")
        say("  A quarter of an hour with your own photos, step by step: docs/tutorial/your-own-photos.md")
        say()
        say(f"[bold]The service goes on at {_safe(self.url)} until Ctrl-C.[/] What happens is told here:")

    def _keep_running(self) -> None:
        while True:
            self._require_service(told=True)
            self._pause(_POLL_SECONDS)

    # --- the end ---

    def _pause(self, seconds: float) -> None:
        if self.stop.asked_at is None and seconds:
            self.stop.wait(seconds)
        if self.stop.asked_at is not None:
            raise Interrupted

    def _end(self) -> int:
        if not self.service.started:
            self.teller.say("Ended before the service was started. `make run` goes on from there.")
            return 130  # what a shell says of a program that Ctrl-C has ended
        if self.service.status is None:
            self.teller.say("Ending the service (up to 15 s; a second Ctrl-C hurries it) ...")
        self.service.end(self.stop)
        self.teller.say("Everything has ended. `make run` goes on from there.")
        return 1 if self.stop.at_once else 0


def _command_path() -> str:
    """`mirror-realm` as it can be called from here."""
    program = Path(sys.executable).parent / "mirror-realm"
    return os.path.relpath(program) if program.is_relative_to(Path.cwd()) else str(program)


def _safe(value: object) -> str:
    return safe(str(value))


def main() -> int:
    """The tour with the options of the command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--port", type=int, help="of the UI; a taken one is replaced by the next that is free")
    options.add_argument("--photos", type=int, default=len(demo.PHOTOS), help="how many photos to make")
    options.add_argument("--side", type=int, default=demo.SIDE, help="their width in pixels")
    chosen = options.parse_args()
    start_environment()
    teller = Teller()
    with stop_signals() as stop:
        try:
            settings = Settings.read()
            photos = demo.chosen(max(1, chosen.photos))
            return Tour(settings, teller, stop, photos, chosen.side, chosen.port or settings.port).run()
        except (MirrorRealmError, OSError) as error:
            typed = as_error(error)
            teller.trouble(typed.message, typed.remedy)
            return 1


if __name__ == "__main__":
    sys.exit(main())
