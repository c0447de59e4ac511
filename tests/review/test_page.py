"""The review page in a real browser, as a person uses it: keys, clicks, a reload, two tabs, a phone, many images."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from chromium import Tab, chromium, needs_chromium, tab
from review_run import (
    ANIMALS,
    answers,
    folder_run,
    journal,
    labels_in,
    parquet_pool,
    resident_mb,
    review_run,
    reviewing,
    reviewing_here,
)

from coreg_ray.run.folder import RunFolder

pytestmark = needs_chromium
SCREENSHOTS = Path(__file__).parents[2] / "screenshots"
ATTACK = "<img src=x onerror=\"document.title='taken over'\">"
PLACE = "document.getElementById('place').textContent"
GONE = "document.getElementById('gone').innerText"
MARKS = """
document.addEventListener("keydown", () => mark("key"), true);
new MutationObserver(() => mark(document.querySelector("#frame img").complete ? "shown" : "empty"))
  .observe(document.getElementById("frame"), { childList: true });
"""


@pytest.fixture(scope="module")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chromium(tmp_path_factory.mktemp("profile")) as address:
        yield address


def person(devtools: str, work: Callable[[Tab], Awaitable[None]]) -> None:
    """Let a person work in a tab of their own."""

    async def sit_down() -> None:
        async with tab(devtools) as one:
            await one.size(1280, 800)
            await work(one)

    asyncio.run(sit_down())


async def at(page: Tab, number: int, of: int) -> None:
    """Wait until that picture is shown, and whole."""
    await page.until(
        f"{PLACE}.startsWith('{number} of {of} ') && document.querySelector('#frame img').naturalWidth > 0"
    )


def test_a_review_by_keys_and_clicks_with_a_reload_in_the_middle(devtools: str, tmp_path: Path) -> None:
    run = folder_run(tmp_path, 8)
    with reviewing(run.path) as review:

        async def work(page: Tab) -> None:
            await page.open(review.address)
            await at(page, 1, 8)
            await page.screenshot(SCREENSHOTS / "review-desktop-light.png")
            await page.dark()
            await page.screenshot(SCREENSHOTS / "review-desktop-dark.png")
            steps = [("Enter", "cat"), ("3", "fox"), ("?", "?"), ("-", "-")]
            for number, (key, label) in enumerate(steps, 1):
                await page.key(key)
                await at(page, number + 1, 8)
                assert journal(run)[-1]["label"] == label  # on disk before the next picture is there
            await page.open(review.address)
            await at(page, 1, 4)  # what has no label yet
            assert "00004.png" in await page.run(PLACE)
            await page.click("#choices button:nth-child(2)")
            await at(page, 2, 4)
            await page.key("Backspace")
            await at(page, 1, 4)
            await page.key("1")
            await at(page, 2, 4)
            await page.key("ArrowLeft")
            await at(page, 1, 4)
            assert await page.run("document.getElementById('label-now').innerText.startsWith('Labelled cat.')")
            assert await page.run("document.title") == "5 of 8 - Review"
            assert not page.errors()

        person(devtools, work)
        assert review.stop().splitlines()[-1] == "loaded"  # neither torch nor Ray
    assert labels_in(run) == {
        "00000.png": "cat", "00001.png": "fox", "00002.png": "?", "00003.png": "-", "00004.png": "cat",
    }  # fmt: skip
    given = [(entry["image_id"], entry["label"], entry["how"]) for entry in journal(run)[4:]]
    assert given == [("00004.png", "dog", "picture"), ("00004.png", "", "undo"), ("00004.png", "cat", "picture")]


def test_the_next_picture_is_there_before_the_key(devtools: str, tmp_path: Path) -> None:
    run = folder_run(tmp_path, 60)
    with reviewing_here(run) as address:

        async def work(page: Tab) -> None:
            await page.open(address)
            await at(page, 1, 60)
            await page.call("Runtime.addBinding", name="mark")
            await page.run(MARKS)
            for number in range(2, 52):
                await page.key("Enter")
                await at(page, number, 60)
            open_since = None
            shown = 0
            for event in page.events:
                if event["method"] == "Runtime.bindingCalled":
                    assert event["params"]["payload"] != "empty"
                    open_since = event if event["params"]["payload"] == "key" else None
                    shown += event["params"]["payload"] == "shown"
                elif event["method"] == "Network.requestWillBeSent" and open_since:
                    assert "/image/" not in event["params"]["request"]["url"]
            assert shown == 50
            assert sum("/image/" in str(event) for event in page.events if "WillBeSent" in event["method"]) >= 50
            assert not page.errors()

        person(devtools, work)


def test_a_whole_class_is_confirmed_in_the_grid(devtools: str, tmp_path: Path) -> None:
    run = folder_run(tmp_path, 24)
    with reviewing_here(run) as address:

        async def work(page: Tab) -> None:
            await page.open(address)
            await page.click("#view-grid")
            await page.until("document.getElementById('grid-confirm').textContent === 'Confirm 8 as cat'")
            await page.click(".tile:nth-child(2)")
            await page.click(".tile:nth-child(5)")
            await page.screenshot(SCREENSHOTS / "review-grid.png")
            await page.click("#grid-confirm")
            await page.until("document.getElementById('grid-confirm').textContent === 'Confirm 8 as dog'")
            assert len(labels := journal(run)) == 6
            assert {entry["label"] for entry in labels} == {"cat"}
            await page.key("Backspace")
            await page.until("document.getElementById('notice').innerText.startsWith('6 labels taken back')")
            assert [entry["label"] for entry in journal(run)[6:]] == [""] * 6
            await page.until("document.querySelector('#grid-class').options.length === 3")
            await page.run(
                "(() => { const c = document.getElementById('grid-class'); c.value = '0'; "
                "c.dispatchEvent(new Event('change')); })()"
            )
            await page.until("document.getElementById('grid-confirm').textContent === 'Confirm 6 as cat'")
            await page.click(".tile:nth-child(1)")
            await page.click("#grid-confirm")
            await page.click("#notice button")
            await at(page, 1, 1)  # what was clicked away, one by one
            await page.key("2")
            await page.until("document.getElementById('done').innerText.includes('last one')")
            assert not page.errors()

        person(devtools, work)
    assert sorted(labels_in(run).values()) == ["cat"] * 5 + ["dog"]


def test_five_thousand_classes_with_html_in_their_names(devtools: str, tmp_path: Path) -> None:
    names = [ATTACK, "<script>document.title='taken over'</script>"] + [f"class {n:04d}" for n in range(4998)]
    run = folder_run(tmp_path, 4, names)
    with reviewing_here(run) as address:

        async def work(page: Tab) -> None:
            await page.open(address)
            await at(page, 1, 4)
            await page.until(f"document.querySelector('#choices span').textContent === {json.dumps(ATTACK)}")
            await page.key("Enter")
            await at(page, 2, 4)
            await page.type("CLASS 4711")
            await page.until("document.querySelectorAll('#matches [role=option]').length === 1")
            await page.key("Enter")
            await at(page, 3, 4)
            await page.type("no such name")
            assert "No class has such a name" in await page.run("document.getElementById('matches').innerText")
            await page.key("Escape")
            await page.type("class 12")
            await page.key("ArrowDown")
            await page.screenshot(SCREENSHOTS / "review-many-classes.png")
            await page.key("Enter")
            await at(page, 4, 4)
            assert await page.run("document.title") == "3 of 4 - Review"
            assert await page.run("document.querySelectorAll('img').length") == 1
            assert not page.errors()

        person(devtools, work)
    assert list(labels_in(run).values()) == [ATTACK, "class 4711", "class 1201"]


def test_two_tabs_do_not_lose_a_label(devtools: str, tmp_path: Path) -> None:
    run = folder_run(tmp_path, 5)
    with reviewing(run.path) as review:

        async def work() -> None:
            async with tab(devtools) as one, tab(devtools) as other:
                for page in (one, other):
                    await page.open(review.address)
                    await at(page, 1, 5)
                await one.key("1")
                await at(one, 2, 5)
                await other.key("2")  # of the picture that the first tab has labelled
                await other.until("document.getElementById('notice').innerText.startsWith('Another page has labelled')")
                assert [entry["label"] for entry in journal(run)] == ["cat"]
                await other.key("ArrowRight")
                await other.key("3")
                await at(other, 3, 5)
                await one.key("ArrowRight")
                await one.key("1")
                await at(one, 4, 5)
                assert not one.errors() + other.errors()
                review.kill()  # nothing that was on disk is lost, and nobody is told that more is
                await one.key("2")
                await one.until("document.getElementById('notice').innerText.includes('so this was not stored')")
                await at(one, 4, 5)

        asyncio.run(work())
    assert len(labels_in(run)) < 3
    with reviewing_here(run):
        assert labels_in(run) == {"00000.png": "cat", "00001.png": "fox", "00002.png": "cat"}


def test_on_a_phone(devtools: str, tmp_path: Path) -> None:
    run = folder_run(tmp_path, 12)
    with reviewing_here(run) as address:

        async def work(page: Tab) -> None:
            await page.size(390, 844, phone=True)
            await page.open(address)
            await at(page, 1, 12)
            for screen in ("single", "grid"):
                await page.click(f"#view-{screen}")
                await page.until("[...document.images].every(image => image.complete)")
                assert await page.run("document.documentElement.scrollWidth <= window.innerWidth")
                await page.screenshot(SCREENSHOTS / f"review-phone-{screen}.png")
            await page.click("#view-single")
            await page.click("#choices button:nth-child(1)")
            await at(page, 2, 12)
            bottom = await page.run("document.getElementById('none').getBoundingClientRect().bottom")
            assert bottom <= 844, "the buttons do not fit below the picture"
            assert not page.errors()

        person(devtools, work)


def test_filters_offer_what_the_run_knows_and_finish_shows_the_command(devtools: str, tmp_path: Path) -> None:
    run = folder_run(tmp_path, 20)
    with reviewing_here(run) as address:

        async def work(page: Tab) -> None:
            await page.open(address)
            await page.click("#show-filters")
            offered = await page.run("document.getElementById('filter-only').innerText.replaceAll('\\n', ' ')")
            assert offered.split() == ["networks", "disagree", "(5)", "label", "changed", "(4)"]  # nothing of outliers
            assert await page.run("document.getElementById('filter-status-label').hidden")
            await page.click("#only-divided")
            await at(page, 1, 5)
            await page.click("#only-changed")
            await at(page, 1, 1)
            await page.screenshot(SCREENSHOTS / "review-filters.png")
            await page.key("1")
            await page.until("document.getElementById('done').innerText.includes('last one')")
            await page.click("#show-finish")
            await page.until("document.getElementById('command').textContent.length > 0")
            command = await page.run("document.getElementById('command').textContent")
            await page.screenshot(SCREENSHOTS / "review-finish.png")
            command = " ".join(command.replace("\\\n", " ").split())
            assert f"train --annotations {run.path}/annotations " in command
            assert f"--start_from {run.path} --source.manual_labels {run.path}/review.csv" in command
            assert f"--output {run.path}-reviewed " in command
            assert "1 image has a class" in await page.run("document.getElementById('finish-count').textContent")
            assert not page.errors()

        person(devtools, work)
    assert journal(run)[-1]["order"] == "chosen"


def test_pictures_that_have_gone_have_a_sentence_in_their_place(devtools: str, tmp_path: Path) -> None:
    run = folder_run(tmp_path, 3)
    (tmp_path / "pool/00000.png").unlink()
    (tmp_path / "pool/00001.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    with reviewing_here(run) as address:

        async def work(page: Tab) -> None:
            await page.open(address)
            await page.until(
                "document.getElementById('gone').innerText.includes('00000.png is no longer in the source')"
            )
            await page.screenshot(SCREENSHOTS / "review-gone.png")
            await page.key("ArrowRight")
            await page.until(f"{GONE}.includes('cannot show this file')")
            await page.key("ArrowRight")
            await at(page, 3, 3)
            await page.click("#view-grid")
            await page.until("document.getElementById('grid-confirm').textContent === 'Leave all for later'")

        person(devtools, work)
    assert not labels_in(run)


@pytest.mark.slow
def test_ten_thousand_images_take_little_more_memory_than_a_hundred(devtools: str, tmp_path: Path) -> None:
    ids = parquet_pool(tmp_path / "pool/a.parquet", 10_000)
    source = {"kind": "parquet", "path": str(tmp_path / "pool")}
    taken = {}
    for count in (100, 10_000):
        run = review_run(RunFolder.at(tmp_path / f"run-{count}"), source, ids[:count])
        with reviewing(run.path) as review:
            for path in ("facts", "state", *(f"image/{number}" for number in range(0, count, count // 50))):
                urllib.request.urlopen(f"{review.address}{path}", timeout=120).read()

            async def work(page: Tab, address: str = review.address, count: int = count) -> None:
                await page.open(address)
                await at(page, 1, count)
                await page.key("Enter")
                await at(page, 2, count)
                assert not page.errors()

            person(devtools, work)
            taken[count] = resident_mb(review.process.pid)
        assert labels_in(run) == {ids[0]: answers(ids[:1], ANIMALS)[0]["suggestion"]}
    assert taken[10_000] < taken[100] + 100
