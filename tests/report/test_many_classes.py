"""The report of a run with a thousand classes: how large it is, its search, and figures that are taken out of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from chromium import Tab, needs_chromium, tab
from finished_run import finished_run
from toy import method

from coreg_ray.commands.words import read_words
from coreg_ray.report.page import write_report
from coreg_ray.run.folder import RunFolder

NAMES = [f"Species {number:04d} {'warbler' if number % 10 == 7 else 'thrush'}" for number in range(1000)]
SHOWN = "[...document.querySelectorAll('{}')].filter(part => part.offsetParent !== null).length"
ROWS, PICTURES = "#test table.sortable tbody tr", ".gallery figure"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder.at(tmp_path_factory.mktemp("many") / "a run")
    write_report(finished_run(folder, NAMES, method=method(epochs=1, warmup_epochs=1).model_dump()))
    return folder


def look(run: RunFolder, devtools: str, work: Callable[[Tab], Awaitable[None]]) -> None:
    """Open the report in a browser."""

    async def sit_down() -> None:
        async with tab(devtools) as page:
            await page.size(1100, 900)
            await page.call("Page.navigate", url=Path(run.path, "report.html").as_uri())
            await page.until("document.readyState === 'complete' && !!document.querySelector('#settings')")
            await work(page)
            assert not page.errors()

    asyncio.run(sit_down())


def test_a_report_of_a_thousand_classes_stays_small(run: RunFolder) -> None:
    page = run.read("report.html")
    assert len(page) < 5_000_000
    assert page.decode().count("<tr><td>Species") >= len(NAMES)


@needs_chromium
def test_a_class_is_found_by_a_part_of_its_name(run: RunFolder, devtools: str) -> None:
    async def work(page: Tab) -> None:
        rows, pictures = (SHOWN.format(parts) for parts in (ROWS, PICTURES))
        assert await page.run(rows) == len(NAMES)
        all_pictures = await page.run(pictures)
        assert all_pictures > 10
        await page.click("#test input.find")
        await page.type("WARBLER")
        assert await page.run(rows) == 100
        told = await page.run("document.querySelector('#test output').textContent")
        shown, of = map(int, re.findall(r"\d+", told))
        assert 100 <= shown < of
        assert of >= len(NAMES)
        assert await page.run("document.querySelector('#pictures input.find').value") == "WARBLER"
        assert await page.run(pictures) < all_pictures
        await page.run("document.querySelector('#test th:nth-child(1) button').click()")  # sorting keeps what is hidden
        assert await page.run(rows) == 100
        await page.run(
            "(() => { const field = document.querySelector('#test input.find'); field.value = '';"
            "field.dispatchEvent(new Event('input')); })()"
        )
        assert await page.run(rows) == len(NAMES)
        assert await page.run(pictures) == all_pictures
        tall = await page.run("document.querySelector('.tall').clientHeight")
        assert tall < 700  # a thousand lines scroll in a box of their own
        assert await page.run("document.documentElement.scrollWidth <= innerWidth")

    look(run, devtools, work)


@needs_chromium
def test_every_figure_can_be_saved(run: RunFolder, devtools: str) -> None:
    async def work(page: Tab) -> None:
        figures = await page.run("document.querySelectorAll('figure svg').length")
        names = await page.run("[...document.querySelectorAll('a.save')].map(link => link.download)")
        assert len(names) == len(set(names)) == figures > 5
        assert "loss.svg" in names
        texts = await page.run(
            "Promise.all([...document.querySelectorAll('a.save')].map(async link => {"
            "  link.addEventListener('click', event => event.preventDefault()); link.click();"
            "  return (await fetch(link.href)).text(); }))"
        )
        for text in texts:
            root = ElementTree.fromstring(text)  # a file of its own, as other programs read it
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert root.findall(".//{http://www.w3.org/2000/svg}path")
            assert "color:" in root.attrib["style"]

    look(run, devtools, work)


def test_the_command_of_the_review_page_is_told_as_a_shell_takes_it(run: RunFolder) -> None:
    import html
    import shlex

    (told,) = re.findall(r'<pre class="command">(.*?)</pre>', run.read("report.html").decode())
    program, name, *words = shlex.split(html.unescape(told))
    assert (program, name) == ("coreg-ray", "review")
    assert read_words(words, "").runs == [run.path]
    assert run.path.endswith("a run")
