"""The Dagster UI as a person sees it: lineage, materialized assets, and the pictures in them, in a real browser."""

from __future__ import annotations

import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import sqlalchemy as sa
from running_home import RunningHome

from mirror_realm_assets.address import LINEAGE
from mirror_realm_assets.catalog import tables as t
from mirror_realm_assets.catalog.engine import Catalog
from mirror_realm_assets.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Page

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
_ASSETS = {"data_sources": 0, "raw_media": 1, "embeddings": 2, "enhanced_images": 1, "faiss_index": 1}  # and checks
_WAIT_MS = 60_000


@pytest.fixture
def chromium() -> str:
    """A browser of this machine; none is ever downloaded."""
    found = next((path for name in _PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return found


@pytest.fixture
def page(chromium: str) -> Iterator[Page]:
    """A page of a headless browser, which is gone after the test with all its processes."""
    from playwright.sync_api import sync_playwright

    before = _children()
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()  # Chromium refuses to sandbox itself as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*_QUIET, *sandbox])
        started = _children() - before
        try:
            opened = browser.new_page(viewport={"width": 1400, "height": 1600})
            opened.set_default_timeout(_WAIT_MS)
            yield opened
        finally:
            started |= {child for process in started if process.is_running() for child in _children(process)}
            browser.close()
    _gone, alive = psutil.wait_procs(started, timeout=10)
    for process in alive:
        process.kill()
    assert not alive, "the browser left processes behind"


def _children(process: psutil.Process | None = None) -> set[psutil.Process]:
    return set((process or psutil.Process()).children(recursive=True))


def test_the_ui_shows_lineage_materializations_and_pictures(
    new_home: Callable[..., RunningHome], drop: Callable[..., Path], page: Page
) -> None:
    home = new_home()
    for number in range(2):
        drop(home.folder, number)
    (home.folder / "<img src=x onerror=alert(1)>.jpg").write_bytes(b"<script>alert(1)</script>")
    home.run("ingest", "demo")
    batch = _batch(home)
    address = _webserver(home)
    elsewhere: list[str] = []
    alerts: list[str] = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: None if _is_local(request.url, address) else elsewhere.append(request.url))

    _check_lineage(page, address)
    _check_materialization(page, _partition(address, "raw_media", batch), "pictures")
    reasons = page.locator("tr", has_text="unsupported").last
    assert "refused" in reasons.inner_text(), "reasons of refusals are a table"
    _check_materialization(page, _partition(address, "enhanced_images", batch), "before | after")

    assert alerts == [], "a file's name or content became a script"
    assert elsewhere == [], "the UI asked another machine for something"


def _batch(home: RunningHome) -> str:
    """The key of the home's one batch."""
    catalog = Catalog(Settings.at(home.home).catalog_url)
    with catalog.read() as conn:
        key: str = conn.execute(sa.select(t.batches.c.key)).scalar_one()
    catalog.close()
    return key


def _webserver(home: RunningHome) -> str:
    """Start the UI alone over a home, and wait until it knows the assets."""
    program = str(Path(sys.executable).parent / "dagster-webserver")
    home.start(program, "-h", "127.0.0.1", "-p", str(home.port), "-m", "mirror_realm_assets.definitions")
    address = f"http://127.0.0.1:{home.port}"
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{address}/server_info", timeout=5):
                return address
        except OSError:
            assert time.monotonic() < end, home.logs()
            time.sleep(0.2)


def _is_local(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def _partition(address: str, asset: str, key: str) -> str:
    return f"{address}/assets/{asset}?view=partitions&partition={key}"


def _check_lineage(page: Page, address: str) -> None:
    """Every asset is a node that says that all its partitions are there and its checks are green."""
    page.set_viewport_size({"width": 2400, "height": 1000})  # smaller, the nodes show their names alone
    page.goto(f"{address}{LINEAGE}", wait_until="domcontentloaded")
    for name, checks in _ASSETS.items():
        node = page.locator("foreignObject", has_text=name).filter(has_text="100% filled").last
        node.filter(has_text=f"{checks} / {checks} Passed" if checks else "Partitions").wait_for()
    page.goto(f"{address}/assets/raw_media", wait_until="domcontentloaded")
    page.get_by_text("What to look at").first.wait_for()
    page.get_by_text("mirror-realm/lane: search").first.wait_for()


def _check_materialization(page: Page, url: str, preview: str) -> None:
    """A partition is materialized, its `glance` is a picture that loaded, and its `preview` opens."""
    page.goto(url, wait_until="domcontentloaded")
    page.get_by_text("Materialized", exact=True).first.wait_for()
    page.get_by_text("summary", exact=True).first.wait_for()
    glance = page.locator("tr", has_text="glance").locator("img").first
    glance.wait_for()
    assert glance.evaluate("image => image.naturalWidth") >= 32 + 2 + 32, "both pictures are in the strip"
    row = page.locator("tr", has_text="preview").first
    link = row.get_by_text("[Show Markdown]")
    if link.count():  # above 1000 characters it is behind a click
        link.click()
        shown = page.get_by_role("dialog").locator("img")
    else:
        shown = row.locator("img")
    shown.wait_for()
    assert shown.evaluate("image => image.naturalWidth") >= 64
    assert shown.get_attribute("alt") == preview
