"""What the tour shows in the end: a contact sheet and two searches with their pictures.

What belongs here: making these files. What does not: how a sheet or a page looks (`mirror_realm_assets.showing`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from demo import Photo
from serving import run_command
from telling import Teller, Waiting

from mirror_realm_assets.settings import Settings
from mirror_realm_assets.stop_signals import Stop

WORDS = "a cup of coffee"
_HITS = 6
_SHEET_PICTURES = 6


class Results:
    """The files that the tour makes in the home.

    Args:
        settings: of this process.
        teller: prints.
        stop: ends a search.
        photos_folder: where the photos are.
        photos: which there are.
    """

    def __init__(
        self, settings: Settings, teller: Teller, stop: Stop, photos_folder: Path, photos: Sequence[Photo]
    ) -> None:
        self._settings, self._teller, self._stop = settings, teller, stop
        self._photos_folder, self._photos = photos_folder, photos
        self.folder = settings.home / "tour"
        self.sheet = self.folder / "contact-sheet.png"
        self._by_picture = self.folder / "search-by-picture.html"
        self._by_words = self.folder / "search-by-words.html"

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them, whether or not they are there."""
        return self.sheet, self._by_picture, self._by_words

    @property
    def are_there(self) -> bool:
        """Whether all of them are."""
        return all(file.exists() for file in self.files)

    def make(self, source: str) -> None:
        """Make them, and say where they are; what cannot be made is said and ends nothing.

        Raises:
            Interrupted: the end was asked for.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with self._teller.waiting("drawing and searching") as waiting:
            waiting.at("the contact sheet")
            self._draw_sheet(source)
            name = next((photo.name for photo in self._photos if photo.sample == "coffee"), self._photos[0].name)
            picture = self._photos_folder / name
            self._search(waiting, self._by_picture, "--like", str(picture), shown=f"--like {name}")
            self._search(waiting, self._by_words, WORDS, shown=f'"{WORDS}"')

    def _draw_sheet(self, source: str) -> None:
        from mirror_realm_assets.catalog.engine import Catalog
        from mirror_realm_assets.showing import placing, sheet
        from mirror_realm_assets.stages.services import Services
        from mirror_realm_assets.store.opening import open_store

        catalog = Catalog(self._settings.catalog_url)
        services = Services(self._settings, catalog, open_store(self._settings.store_url, catalog.uuid()))
        try:
            pairs = sheet.pairs_of(services, source, count=_SHEET_PICTURES)
            if not pairs:
                remedy = "`mirror-realm files` says what is known."
                self._teller.trouble("There is no enhanced picture to show.", remedy)
                return
            placing.put(self.sheet, sheet.draw(pairs))
        finally:
            services.close()
        self._teller.look(self.sheet.as_uri(), "before | after")

    def _search(self, waiting: Waiting, page: Path, *question: str, shown: str) -> None:
        waiting.at(f"searching: {shown}")
        done = run_command("search", *question, "-k", str(_HITS), "--html", str(page), "--json", stop=self._stop)
        if done.status:
            self._teller.trouble(f"search {shown}: {done.last_words}", "Everything else goes on.")
            return
        hits = json.loads(done.output)
        best = ", ".join(f"{Path(hit['paths'][0]).name} {hit['score']:.2f}" for hit in hits[:3] if hit["paths"])
        self._teller.look(page.as_uri(), f"search {shown}")
        self._teller.fact(f"      best: {best or 'nothing'}")
