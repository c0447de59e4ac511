"""The report: what it tells, what it must survive, and how it looks in a browser."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import NAMES, POOL, TEST, finished_run, run_config
from torch.nn import functional as F
from toy import CLASSES, images

from coreg_ray.artifact import export
from coreg_ray.baselines import fit_probe
from coreg_ray.command_line import resolved_yaml
from coreg_ray.draws import generator
from coreg_ray.gallery import thumbnail
from coreg_ray.judgement import Judgement
from coreg_ray.report import write_report
from coreg_ray.report_data import confusion_counts, read_run
from coreg_ray.report_sections import comparison, test_tables
from coreg_ray.review import COLUMNS, review_order
from coreg_ray.storage import Folder

test_tables.__test__ = False  # a function of the library whose name pytest would take for a test
SCREENSHOTS = Path(__file__).parent.parent / "screenshots"
ATTACK = "<img src=x onerror=\"document.title='taken over'\">"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = finished_run(Folder.at(tmp_path_factory.mktemp("run")), [ATTACK, *NAMES[1:]])
    export(folder)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Folder) -> str:
    return run.read("report.html").decode()


def sections(page: str) -> set[str]:
    return set(re.findall(r'<section id="(\w+)">', page))


def test_the_report_tells_everything_that_the_run_holds(page: str) -> None:
    assert sections(page) == {"headline", "annotation", "training", "test", "calibration", "pictures", "settings"}
    for title in ("Linear probe", "Student distilled", "Co-Reg, both", "Typical images", "Most frequent confusions"):
        assert title in page
    assert page.count("<svg") >= 8
    assert len(page) < 1_000_000


def test_it_needs_no_network_and_runs_nothing_from_the_data(page: str) -> None:
    assert not re.findall(r'(?:src|href)\s*=\s*"(?!#|data:)[^"]*"|url\((?!#)[^)]*\)|@import', page)
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_figures_follow_the_readers_colours(page: str) -> None:
    figure = page[page.index("<svg") : page.index("</svg>")]
    assert "currentColor" in figure
    assert "#010203" not in page


def test_confusion_counts_by_hand() -> None:
    logits = torch.tensor([[3.0, 0], [0, 3], [0, 3], [3, 0]]).expand(2, 4, 2)
    judged = Judgement.of(logits, torch.tensor([0, 0, 1, 1]))
    assert confusion_counts(judged, 2).tolist() == [[1, 1], [1, 1]]
    np.testing.assert_allclose(judged.margin, 3)
    np.testing.assert_allclose(judged.belief[0], torch.tensor([[3.0, 0], [0, 3], [3, 0], [0, 3]]).softmax(1)[:, 0])


def test_the_tables_agree_with_the_metrics(run: Folder) -> None:
    facts = read_run(run)
    tables = test_tables(facts)
    assert tables is not None
    assert tables["images"] == TEST
    assert tables["accuracy"] == pytest.approx(facts.metrics["test/accuracy"])
    assert sum(row["images"] for row in tables["per_class"]) == TEST
    rows = {row["name"]: row for row in comparison(facts)}
    assert rows["Co-Reg, both"]["accuracy"] == facts.metrics["test/accuracy"]
    assert sum(facts.sizes) == POOL


def test_a_probe_learns_from_candidate_sets_and_baselines_are_not_made_twice(run: Folder) -> None:
    kept = run.read_json("baselines.json")
    probe, distilled = kept["baselines"]
    assert probe["accuracy"] > 0.7  # the toy annotator is right for 9 in 10
    assert distilled["accuracy"] is not None
    run.write_json("baselines.json", kept | {"baselines": [probe | {"accuracy": 0.123}, distilled]})
    assert read_run(run).baselines[0].accuracy == 0.123
    run.write_json("baselines.json", kept | {"fingerprint": ["another", "run"]})
    assert read_run(run).baselines[0].accuracy == pytest.approx(probe["accuracy"])


def test_the_probe_separates_what_can_be_separated() -> None:
    labels = torch.randint(0, 4, (300,), generator=generator(1))
    embedding = F.normalize(torch.eye(4, 6)[labels] + 0.1 * torch.randn(300, 6, generator=generator(2)), dim=1)
    sets = F.one_hot(labels, 4).bool() | (torch.rand(300, 4, generator=generator(3)) < 0.3)
    weights = fit_probe(embedding, sets)
    said = (embedding @ weights[:-1] + weights[-1]).argmax(1)
    assert float((said == labels).float().mean()) > 0.95


def test_review_takes_one_image_of_each_confusion_first() -> None:
    sure, of_ab, of_cd = [0.97, 0.01, 0.01, 0.01], [0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]
    probs = torch.tensor([sure, of_ab, of_ab, of_ab, of_cd, of_cd, sure]).expand(2, 7, 4)
    order = review_order(probs, 7).tolist()
    assert order[0] in (1, 2, 3)  # the larger group
    assert order[1] in (4, 5)
    assert set(order[5:]) == {0, 6} or set(order) == set(range(7))
    assert len(review_order(probs, 100)) == 7


def test_disagreement_counts_as_doubt_even_when_both_networks_are_sure() -> None:
    agree, against = torch.tensor([[0.99, 0.01]]), torch.tensor([[0.01, 0.99]])
    probs = torch.stack([torch.cat([agree, agree]), torch.cat([agree, against])])
    assert review_order(probs, 1).tolist() == [1]


def test_review_csv_is_what_manual_labels_take(run: Folder, tmp_path: Path) -> None:
    from coreg_ray.manual import read_manual
    from coreg_ray.vocabulary import Vocabulary

    rows = list(csv.DictReader(io.StringIO(run.read("review.csv").decode())))
    assert len(rows) == 100
    assert tuple(rows[0]) == COLUMNS
    assert all(row["image_id"].startswith("pool/") and row["label"] == "" for row in rows)
    filled = [row | {"label": NAMES[1]} for row in rows[:10]]
    path = tmp_path / "review.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(filled)
    ids, labels = read_manual(str(path), Vocabulary(tuple((name,) for name in NAMES), ("a {}",)))
    assert sorted(ids) == sorted(row["image_id"] for row in filled)
    assert labels.labels.tolist() == [1] * 10


def test_private_pools_show_no_picture_and_no_review(run: Folder, tmp_path: Path) -> None:
    other = Folder.at(shutil.copytree(run.path, tmp_path / "run"))
    config = run_config(other, CLASSES, report={"pictures": 0, "review": 0, "baselines": False})
    other.write("config.yaml", resolved_yaml(config))
    other.delete("review.csv")
    write_report(other)
    page = other.read("report.html").decode()
    assert "<img" not in page
    assert "pictures" not in sections(page)
    assert not other.exists("review.csv")


@pytest.mark.parametrize(
    "missing",
    [
        "config.yaml", "metrics.json", "history.csv", "candidates", "checkpoints", "model", "labels", "rows",
        "annotations",
    ],
)  # fmt: skip
def test_a_report_is_written_whatever_is_missing(run: Folder, tmp_path: Path, missing: str) -> None:
    other = Folder.at(shutil.copytree(run.path, tmp_path / "run"))
    other.delete(missing)
    write_report(other)
    assert "headline" in sections(other.read("report.html").decode())


def test_a_report_of_nothing_and_of_one_epoch(run: Folder, tmp_path: Path) -> None:
    empty = Folder.at(tmp_path / "empty")
    write_report(empty)
    assert sections(empty.read("report.html").decode()) == {"headline", "annotation"}
    other = Folder.at(shutil.copytree(run.path, tmp_path / "run"))
    other.write("history.csv", "\n".join(other.read("history.csv").decode().splitlines()[:2]))
    write_report(other)
    assert "training" in sections(other.read("report.html").decode())


def test_thumbnails_are_small_and_show_the_image() -> None:
    import base64

    from PIL import Image

    pixels, _ = images(1, seed=1)
    small = thumbnail(pixels[0].permute(2, 0, 1))
    shown = Image.open(io.BytesIO(base64.b64decode(small.split(",")[1])))
    np.testing.assert_array_equal(np.asarray(shown), pixels[0])
    large = thumbnail(torch.zeros(3, 500, 500, dtype=torch.uint8))
    assert large.startswith("data:image/jpeg")
    assert len(large) < 5000


# In a real browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found; on Debian: apt-get install chromium")
PROBE = """<script>
const head = [...document.querySelectorAll("#test table.sortable th")].find(th => th.textContent === "recall");
head.querySelector("button").click();
const sorted = [...document.querySelectorAll("#test table.sortable tbody tr")].map(tr => tr.cells[2].textContent);
document.title = JSON.stringify({
  wide: document.documentElement.scrollWidth, window: window.innerWidth, sorted, sort: head.getAttribute("aria-sort"),
  broken: [...document.images].filter(img => img.loading !== "lazy" && !img.naturalWidth).length,
  images: document.images.length, ink: getComputedStyle(document.body).color,
});
</script></body>"""


def browse(page: Path, width: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in headless Chromium; what the console says comes on stderr."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--enable-logging=stderr", "--virtual-time-budget=2000", f"--window-size={width},2400",
        f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


@needs_chromium
@pytest.mark.parametrize(("width", "name"), [(390, "phone"), (1280, "desktop")])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_renders_in_a_browser(run: Folder, tmp_path: Path, width: int, name: str, scheme: str) -> None:
    page = tmp_path / "report.html"
    page.write_text(run.read("report.html").decode().replace("</body>", PROBE))
    colours = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    seen = browse(page, width, colours, "--dump-dom")
    assert "CONSOLE" not in seen.stderr, seen.stderr
    found = _title(seen.stdout)
    assert found["wide"] <= found["window"], "the page scrolls sideways"
    assert found["images"] > 10
    assert found["sort"] == "ascending"
    assert found["sorted"] == sorted(found["sorted"], key=lambda text: float(text or 0))
    light = sum(map(int, re.findall(r"\d+", found["ink"])[:3])) > 3 * 128
    assert light == (scheme == "dark")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    picture = SCREENSHOTS / f"report-{name}-{scheme}.png"
    browse(page, width, colours, f"--screenshot={picture}")
    assert picture.stat().st_size > 10_000


@needs_chromium
def test_a_console_error_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>nothing.at.all()</script>")
    assert "CONSOLE" in browse(page, 390, "--dump-dom").stderr


def _title(dom: str) -> dict[str, Any]:
    import html
    import json

    found = re.search(r"<title>(.*?)</title>", dom, re.S)
    assert found is not None
    return json.loads(html.unescape(found.group(1)))
