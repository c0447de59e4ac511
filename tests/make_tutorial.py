"""The pictures of docs/tutorial.md: runs all its commands in a folder, as a person would, and looks at what is there.

    python tests/make_tutorial.py FOLDER            takes some minutes, and Chromium

Blocks that need a server are left out, and a person's labels are the true ones of the digits.
"""

from __future__ import annotations

import asyncio
import html
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from chromium import Tab, chromium, tab
from doc_blocks import ROOT, Block, blocks_of, shell_commands
from PIL import Image
from review_run import reviewing_here

from coreg_ray.embedded.digits import CLASS_NAMES, digits
from coreg_ray.run.folder import REVIEW, RunFolder
from coreg_ray.run.review_table import IMAGE, ReviewTable

PAGE = ROOT / "docs/tutorial.md"
PICTURES = ROOT / "docs/tutorial"
LARGEST = 150_000  # bytes of a picture
TERMINALS = {"annotate": "annotate.png", "pipeline": "pipeline.png", "show": "show.png"}
LABELLED = 20
COLUMNS, WIDE = 150, 1310  # of a terminal, and of its picture in pixels


def main(folder: Path) -> None:
    """Run the page, block by block."""
    folder.mkdir(parents=True, exist_ok=True)
    shown: dict[str, str] = {}
    for block in blocks_of(PAGE):
        run_block(block, folder, shown)
    os.chdir(folder)  # the run's settings name its pictures from here
    run = folder / "runs/tutorial"
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as devtools:
        asyncio.run(look(devtools, run, shown))


def run_block(block: Block, folder: Path, shown: dict[str, str]) -> None:
    """One block; what commands of ours say is kept in `shown`, the first of each name."""
    if block.language == "python":
        subprocess.run([sys.executable, "-c", block.text], cwd=folder, check=True)
    elif block.language == "yaml":
        (folder / "run.yaml").write_text(block.text, encoding="utf-8")
    elif block.language == "bash" and not block.needs:
        for words in shell_commands(block.text):
            if words[0] != "coreg-ray" or words[1] == "review":
                continue  # installed already; the page is looked at afterwards
            if words[1] == "train":
                label(RunFolder.at(folder / "runs/tutorial"))
            said = call(words, folder)
            shown.setdefault(words[1], f"$ {' '.join(words)}\n{said}")


def call(words: list[str], folder: Path) -> str:
    """What a command says at its end, without its log."""
    sys.stderr.write(f"{' '.join(words)}\n")
    program = [sys.executable, "-c", "from coreg_ray.cli import main; main()", *words[1:]]
    ended = subprocess.run(
        program, cwd=folder, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | {"COLUMNS": str(COLUMNS)}
    )
    if ended.returncode:
        sys.exit(f"{' '.join(words)} ended with {ended.returncode}")
    return ended.stdout.replace(f"{folder}/", "")


def label(run: RunFolder) -> None:
    """What a person does on the review page: the first images of `review.csv` get their labels."""
    truth: dict[str, str] = {}
    names, _, labels = digits("train")
    for name, number in zip(names, labels, strict=True):
        truth[f"{Path(name).name}.png"] = CLASS_NAMES[number]
    table = ReviewTable.parse(run.read(REVIEW))
    assert table is not None
    some = [row[IMAGE] for row in table.rows[:LABELLED]]
    run.write(REVIEW, table.with_labels({name: truth[name] for name in some}))


async def look(devtools: str, run: Path, shown: dict[str, str]) -> None:
    """Pictures of the terminal, the report and the review page."""
    async with tab(devtools) as page:
        with tempfile.TemporaryDirectory() as folder:
            for name, picture in TERMINALS.items():
                await terminal(page, shown[name], Path(folder), picture)
        await page.size(1100, 900)
        await page.call("Page.navigate", url=(run / "report.html").as_uri())
        await page.until("document.readyState === 'complete' && !!document.querySelector('#headline')")
        await asyncio.sleep(1)
        await shoot(page, "report.png")
        with reviewing_here(RunFolder.at(run), "runs/tutorial") as address:
            await page.size(1100, 720)
            await page.open(address)
            await page.until("document.querySelector('#frame img')?.naturalWidth > 0")
            await shoot(page, "review.png")


async def terminal(page: Tab, text: str, folder: Path, picture: str) -> None:
    """A picture of text as a terminal shows it."""
    lines = text.rstrip().splitlines()
    style = "margin:0;padding:14px 18px;background:#14171c;color:#e6e9ee;font:14px/1.45 monospace;white-space:pre-wrap"
    file = folder / f"{picture}.html"
    file.write_text(
        f"<!doctype html><body style='margin:0'><pre style='{style}'>{html.escape(chr(10).join(lines))}</pre>"
    )
    await page.size(WIDE, 200)
    await page.call("Page.navigate", url=file.as_uri())
    await page.until("document.readyState === 'complete' && !!document.querySelector('pre')")
    await page.size(WIDE, int(await page.run("document.querySelector('pre').offsetHeight")))
    await shoot(page, picture)


async def shoot(page: Tab, name: str) -> None:
    """Write what is seen, in few colours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        await page.screenshot(path)
        stream = io.BytesIO()
        Image.open(path).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    content = stream.getvalue()
    if len(content) > LARGEST:
        sys.exit(f"{name} has {len(content):,} bytes, {LARGEST:,} are the most: look at less of it")
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / name).write_bytes(content)
    text = PAGE.read_text(encoding="utf-8")  # which has the picture in a comment as long as it was never made
    PAGE.write_text(re.sub(rf"^<!-- (!\[[^\]]*\]\({PICTURES.name}/{re.escape(name)}\)) -->$", r"\1", text, flags=re.M))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/make_tutorial.py FOLDER")
    main(Path(sys.argv[1]).resolve())
