"""The site of docs/: it builds without a warning, asks nobody for anything, and can be searched."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


class Fetched(HTMLParser):
    """Addresses of all that a browser fetches by itself to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag != "a" and not (tag == "link" and given.get("rel") in ("canonical", "next", "prev")):
            self.addresses += [value for name, value in attrs if name in ("src", "href", "data") and value]


def fetched(page: Path) -> Iterator[str]:
    reader = Fetched()
    reader.feed(page.read_text(encoding="utf-8"))
    return iter(reader.addresses)


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        for address in fetched(page):
            assert not re.match(r"(https?:)?//", address), f"{page.name}: {address}"
            if not address.startswith(("data:", "#", "/")):
                assert (page.parent / re.split(r"[?#]", address)[0]).exists(), f"{page.name}: {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_every_page_is_in_the_menu_and_found_by_the_search(site: Path) -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].split("#")[0] for entry in index["docs"]}
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert f": {name}" in menu
        assert name.replace(".md", ".html") in found
    assert {"CONTRIBUTING.html", "CHANGELOG.html"} <= found


def test_blocks_in_lists_are_blocks(site: Path) -> None:
    """Python's Markdown wants four spaces where a forge takes two."""
    text = (site / "cluster.html").read_text(encoding="utf-8")
    shown = re.sub(r"<[^>]+>", "", " ".join(re.findall(r"<pre.*?</pre>", text, re.S)))
    assert "ray up cluster.yaml" in shown
    assert "ray job stop" in shown
    assert "```" not in re.sub(r"<(pre|code).*?</\1>", "", text, flags=re.S)


def test_the_theme_asks_for_no_font() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
