"""The report: what it tells, what it must survive, and how it looks in a browser."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chromium import needs_chromium, tab
from finished_run import NAMES, POOL, PROMPTS, TEST, export, finished_run, run_config
from torch.nn import functional as F
from toy import CLASSES, SIDE, images, method

from coreg_ray.annotation.arrow import write_table
from coreg_ray.cluster import stages
from coreg_ray.cluster.stages import finish
from coreg_ray.config import Config
from coreg_ray.deploy import export as exporting
from coreg_ray.deploy.predictions import Judgement
from coreg_ray.ids import held_out, row_numbers
from coreg_ray.pure.rng import generator
from coreg_ray.report import baselines
from coreg_ray.report.baselines import compare, distil, fit_probe
from coreg_ray.report.data import Run, read_run
from coreg_ray.report.gallery import pool_galleries, thumbnail
from coreg_ray.report.page import render, write_report
from coreg_ray.report.review import COLUMNS, review_order, with_labels_kept, write_review
from coreg_ray.report.sections import annotation_figures, comparison, margin, training_figures, verdict
from coreg_ray.report.sections import test_tables as tables_of_test_images  # pytest would take its name for a test's
from coreg_ray.run.folder import RunFolder, Split
from coreg_ray.run.records import Baseline, PurifiedManifest
from coreg_ray.training import sample as sampling
from coreg_ray.training.sample import Sample, Samples, read_sample

SCREENSHOTS = Path(__file__).parents[2] / "screenshots"
ATTACK = "<img src=x onerror=\"document.title='taken over'\">"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = finished_run(RunFolder.at(tmp_path_factory.mktemp("run")), [ATTACK, *NAMES[1:]])
    export(folder)
    config = folder.read_config()
    assert config is not None
    compare(folder, config)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: RunFolder) -> str:
    return run.read("report.html").decode()


def sections(page: str) -> set[str]:
    return set(re.findall(r'<section id="(\w+)">', page))


def test_the_report_tells_everything_that_the_run_holds(page: str) -> None:
    told = "headline annotation labels training test calibration pictures review settings"
    assert sections(page) == set(told.split())
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


def test_judgements_by_hand() -> None:
    logits = torch.tensor([[3.0, 0], [0, 3], [0, 3], [3, 0]]).expand(2, 4, 2)
    judged = Judgement.of(logits, torch.tensor([0, 0, 1, 1]))
    assert judged.best.tolist() == [[0, 1, 1, 0]] * 3
    np.testing.assert_allclose(judged.margin, 3)
    np.testing.assert_allclose(judged.belief[0], torch.tensor([[3.0, 0], [0, 3], [3, 0], [0, 3]]).softmax(1)[:, 0])


def test_the_tables_agree_with_the_metrics(run: RunFolder) -> None:
    facts = read_run(run)
    tables = tables_of_test_images(facts)
    assert tables is not None
    assert tables["images"] == TEST
    assert tables["accuracy"] == pytest.approx(facts.metrics["test/accuracy"])
    assert sum(row["images"] for row in tables["per_class"]) == TEST
    rows = {row["name"]: row for row in comparison(facts)}
    assert rows["Co-Reg, both"]["accuracy"] == facts.metrics["test/accuracy"]
    assert sum(facts.sizes) == POOL


def test_test_images_that_lie_in_the_pool_are_told() -> None:
    said = "2 of the 40 test images (5%) lie in the pool too, byte for byte"
    assert said in render(Run(metrics={"test/images": 40, "test/images_in_pool": 2}), "run")
    assert "lie in the pool" not in render(Run(metrics={"test/images": 40, "test/images_in_pool": 0}), "run")


def copied(run: RunFolder, tmp_path: Path) -> tuple[RunFolder, Config]:
    """The run in a folder that a test may change, and its configuration."""
    other = RunFolder.at(shutil.copytree(run.path, tmp_path / "run"))
    config = other.read_config()
    assert config is not None
    return other, config


def dissent_figure(run: RunFolder) -> str:
    """The figure that has a bar for each prompt, as SVG."""
    (svg,) = [figure.svg for figure in annotation_figures(read_run(run)) if "each prompt votes" in figure.caption]
    return str(svg)


def test_prompts_are_named_where_the_annotations_lie_in_another_run(run: RunFolder, tmp_path: Path) -> None:
    borrower, _ = copied(run, tmp_path)
    borrower.delete("annotations")
    assert read_run(borrower).prompts == []
    assert "prompt 1" in dissent_figure(borrower)
    borrower.link(annotations=run / "annotations")
    assert read_run(borrower).prompts == list(PROMPTS)
    figure = dissent_figure(borrower)
    assert all(f">{prompt}</text>" in figure for prompt in PROMPTS)
    assert "prompt 1" not in figure
    write_report(borrower)
    assert figure in borrower.read("report.html").decode()


def test_one_samples_object_reads_each_split_once_for_all(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(run: RunFolder, split: Split, *numbers: int) -> Sample | None:
        read.append(split)
        return read_sample(run, split, *numbers)

    def take_home(run: RunFolder, samples: Samples | None) -> list[str]:
        """Export and report; returns the splits whose pixels were read for it."""
        read.clear()
        export(run, samples)
        write_report(run, samples)
        return sorted(read)

    monkeypatch.setattr(sampling, "read_sample", counted)
    monkeypatch.setattr(exporting, "ASKED_IMAGES", 50)  # each asks for another number of images
    other, _ = copied(run, tmp_path)
    config = run_config(other, [ATTACK, *NAMES[1:]], report={"images": 60, "baselines": False})
    other.write_config(config)
    assert take_home(other, None) == ["pool"] * 2 + ["test"] * 2
    apart = [other.read(name) for name in ("model/model.safetensors", "review.csv")]
    assert take_home(other, Samples(other, SIDE, len(NAMES), 60)) == ["pool", "test"]
    assert [other.read(name) for name in ("model/model.safetensors", "review.csv")] == apart
    read.clear()
    monkeypatch.setattr(stages, "purify", lambda *given: PurifiedManifest("", 0, 0.0, 1.0, {}))  # on Ray
    finish(config, other, trained_s=0.0)
    assert sorted(read) == ["pool", "test"]


def test_a_probe_learns_from_candidate_sets_and_baselines_are_not_made_twice(run: RunFolder, tmp_path: Path) -> None:
    other, config = copied(run, tmp_path)
    kept = other.read_json("baselines.json")
    probe, distilled = kept["baselines"]
    assert probe["accuracy"] > 0.7  # the toy annotator is right for 9 in 10
    assert distilled["accuracy"] > 0.4  # and of four classes chance is right for 1 in 4
    other.write_json("baselines.json", kept | {"baselines": [probe | {"accuracy": 0.123}, distilled]})
    assert compare(other, config)[0].accuracy == 0.123
    other.write_json("baselines.json", kept | {"fingerprint": ["another", "run"]})
    assert read_run(other).baselines == []
    assert compare(other, config)[0].accuracy == pytest.approx(probe["accuracy"])


def test_baselines_scored_on_a_sample_of_the_test_images_say_so(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, config = copied(run, tmp_path)
    assert all(made.images == TEST and "sample" not in made.note for made in compare(other, config))
    other.delete("baselines.json")
    monkeypatch.setattr(baselines, "MOST_IMAGES", 60)
    for made in compare(other, config):
        assert made.images == 60
        assert made.note.endswith("; scored on a sample of 60 test images")
    rows = {row["name"]: row for row in comparison(read_run(other))}
    probe, ours = rows[baselines.PROBE], rows["Co-Reg, both"]
    assert probe["margin"] == pytest.approx(margin(probe["accuracy"], 60))
    assert ours["margin"] == pytest.approx(margin(ours["accuracy"], TEST))


def test_with_very_many_classes_the_probe_or_both_baselines_are_left_out(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, config = copied(run, tmp_path)
    other.delete("baselines.json")
    monkeypatch.setattr(baselines, "MOST_PROBED", 400)
    probe, distilled = compare(other, config)
    assert probe == Baseline(
        baselines.PROBE, None, None, "left out: more than 100 images of 4 classes are too many for one machine"
    )
    assert distilled.accuracy is not None
    other.delete("baselines.json")
    monkeypatch.setattr(baselines, "MOST_TOLD", 800)
    left_out = compare(other, config)
    assert [(made.name, made.accuracy) for made in left_out] == [(baselines.PROBE, None), (baselines.DISTILLED, None)]
    assert all("more than 200 images" in made.note for made in left_out)
    assert baselines.PROBE in {row["name"] for row in comparison(read_run(other))}


def test_a_student_is_distilled_in_the_time_there_is_or_not_at_all(run: RunFolder) -> None:
    settings = method(epochs=20, batch_size=64).model_dump()
    config, sample = run_config(run, CLASSES, method=settings), read_sample(run, "pool", SIDE, len(CLASSES), 200)
    assert sample is not None
    targets = sample.candidates / sample.candidates.sum(1, keepdim=True)
    whole = distil(sample, targets, config, limit_s=1e6)
    assert whole is not None
    assert whole[1] == 20
    assert distil(sample, targets, config, 1e-3) is None


def test_the_probe_separates_what_can_be_separated() -> None:
    labels = torch.randint(0, 4, (300,), generator=generator(1))
    embedding = F.normalize(torch.eye(4, 6)[labels] + 0.1 * torch.randn(300, 6, generator=generator(2)), dim=1)
    sets = F.one_hot(labels, 4).bool() | (torch.rand(300, 4, generator=generator(3)) < 0.3)
    weights = fit_probe(embedding, sets)
    predicted = (embedding @ weights[:-1] + weights[-1]).argmax(1)
    assert float((predicted == labels).float().mean()) > 0.95


def test_review_takes_one_image_of_each_doubtful_group_first() -> None:
    sure, of_ab, of_cd = [0.97, 0.01, 0.01, 0.01], [0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]
    probs = torch.tensor([sure, of_ab, of_ab, of_ab, of_cd, of_cd, sure]).expand(2, 7, 4)
    features = F.one_hot(torch.tensor([0, 1, 1, 1, 2, 2, 3]), 4).float()
    order = review_order(probs, features, 7).tolist()
    assert order[0] in (1, 2, 3)  # of the larger group
    assert order[1] in (4, 5)
    assert sorted(order) == list(range(7))
    assert len(review_order(probs, features, 100)) == 7


def test_of_images_in_equal_doubt_the_typical_one_comes_first() -> None:
    near = F.normalize(torch.tensor([[1.0, 0.1, 0], [1, 0, 0], [1, -0.1, 0], [0, 0, 1]]), dim=1)
    assert review_order(torch.full((2, 4, 3), 1 / 3), near, 2).tolist() == [1, 3]


def test_disagreement_counts_as_doubt_even_when_both_networks_are_sure() -> None:
    agree, against = torch.tensor([[0.99, 0.01]]), torch.tensor([[0.01, 0.99]])
    probs = torch.stack([torch.cat([agree, agree]), torch.cat([agree, against])])
    assert review_order(probs, torch.eye(2), 1).tolist() == [1]


def test_only_the_most_doubtful_are_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreg_ray.report.review.MOST_WEIGHED", 3)
    share = torch.linspace(0.5, 0.99, 10)
    probs = torch.stack([share, 1 - share], dim=1).expand(2, 10, 2)
    assert sorted(review_order(probs, torch.eye(10), 10).tolist()) == [0, 1, 2]


def test_review_csv_is_what_manual_labels_take(run: RunFolder, tmp_path: Path) -> None:
    from coreg_ray.annotation.manual import read_manual
    from coreg_ray.annotation.vocabulary import Vocabulary

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


HEADER = ",".join(COLUMNS) + "\n"
FRESH = HEADER + "".join(f"pool/{name}.png,,cat,0.5,cat,0.5,dog,0.5,cat\n" for name in "abc")


def test_labels_that_a_person_wrote_survive_another_report(run: RunFolder, tmp_path: Path) -> None:
    other = RunFolder.at(shutil.copytree(run.path, tmp_path / "run"))
    lines = other.read("review.csv").decode().splitlines(keepends=True)
    name, _, rest = lines[3].split(",", 2)
    kept = "".join([*lines[:3], f"{name},cross,{rest}", *lines[4:60], f"pool/239.png,cross{',' * 7}\n"])
    other.write("review.csv", kept)
    write_report(other)
    after = other.read("review.csv").decode()
    assert after.startswith(kept)
    ids = [row["image_id"] for row in csv.DictReader(io.StringIO(after))]
    assert set(ids) >= {line.split(",")[0] for line in lines[1:]}
    assert len(ids) == len(set(ids))
    write_report(other)
    assert other.read("review.csv").decode() == after


def test_a_review_file_without_a_label_is_written_anew() -> None:
    for there in ("", "\n", HEADER, HEADER + "pool/z.png,  ,cat\n", "image_id,label\n"):
        assert with_labels_kept(there.encode(), FRESH) == FRESH.encode()


def test_rows_are_appended_under_the_columns_that_a_person_left() -> None:
    there = "\ufefflabel,image_id,remark\r\ncat,pool/b.png,sure\r\ndog,pool/z.png".encode()
    assert with_labels_kept(there, FRESH) == there + b"\r\n,pool/a.png,\r\n,pool/c.png,\r\n"
    whole = b"image_id,label\npool/a.png,\npool/b.png,cat\npool/c.png"  # the last row ends early
    assert with_labels_kept(whole, FRESH) == whole


@pytest.mark.parametrize(
    "there",
    [
        b"image_id;label\npool/a.png;cat\n",
        b"pool/a.png,cat\n",
        b"image_id,label\npool/a.png,\xe9\n",
        b'image_id,label\n"pool/a.png,cat\n',
        b"image_id,label\npool/a, b.png,,cat\n",
        b"image_id,label,label\npool/a.png,cat,\n",
    ],
)
def test_a_review_file_that_cannot_be_read_is_left_alone(
    there: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = RunFolder.at(tmp_path)
    output.write("review.csv", there)
    write_review(output, FRESH)
    assert output.read("review.csv") == there
    assert output.read("review-new.csv").decode() == FRESH
    assert "review.csv is no CSV in UTF-8" in caplog.text
    told = FRESH.replace("a.png,,", "a.png,dog,")
    output.write("review-new.csv", told)
    write_review(output, FRESH)
    assert output.read("review-new.csv").decode() == told
    output.write("review-new.csv", there)
    write_review(output, FRESH)
    assert [output.read(name) for name in ("review.csv", "review-new.csv")] == [there, there]


def test_training_curves_tell_what_the_history_holds(run: RunFolder) -> None:
    facts = read_run(run)
    assert [figure.caption.split()[0] for figure in training_figures(facts)] == [
        "Loss.", "Candidate", "Images", "Labels", "Accuracy",
    ]  # fmt: skip
    assert any(row["churn/a"] for row in facts.history[3:])
    churn = {"churn/a", "churn/b"}
    without = replace(facts, history=[{name: row[name] for name in row.keys() - churn} for row in facts.history])
    assert len(training_figures(without)) == 4


def test_the_verdict_weighs_the_gain_against_the_chance_of_the_test_images() -> None:
    def verdict_on(ours: float, probe: float | None, images: int) -> str:
        ways = {"Annotator alone": 0.5, "Linear probe": probe, "Co-Reg, both": ours}
        return verdict(
            [
                {"name": name, "accuracy": right, "margin": right and margin(right, images), "main": "both" in name}
                for name, right in ways.items()
            ]
        )

    assert verdict_on(0.8, 0.6, 10_000) == (
        "Of the annotator's errors on the test images, 60% are gone. "
        "It paid: +0.200 against the best cheaper way (Linear probe, 0.600)."
    )
    assert "did not pay: -0.100" in verdict_on(0.6, 0.7, 10_000)
    assert "may be chance" in verdict_on(0.8, 0.7, 40)
    assert "errors" not in verdict_on(0.4, None, 10_000)
    assert verdict([]) == ""


def test_margins_are_wilsons() -> None:
    assert margin(0.5, 100) == pytest.approx(0.0962, abs=1e-4)  # 0.404 to 0.596
    assert 0 < margin(1.0, 10) < 0.2


def test_every_kind_of_change_has_its_turn(run: RunFolder) -> None:
    sample = read_sample(run, "pool", SIDE, len(NAMES), 6)
    assert sample is not None
    after, sure = torch.tensor([1, 1, 1, 2, 0, 3]), torch.tensor([1.0, 3.0, 2.0, 5.0, 1.0, 1.0])
    judged = Judgement.of((F.one_hot(after, 4) * sure[:, None]).expand(2, 6, 4), torch.tensor([0, 0, 0, 0, 0, -1]))
    changed = pool_galleries(sample, judged, NAMES, 3)[0]
    assert changed.total == 4
    assert [(change.after, change.images) for change in changed.changes] == [(NAMES[1], 3), (NAMES[2], 1)]
    assert [picture.name for picture in changed.pictures] == [sample.ids[row] for row in (1, 3, 2)]
    assert changed.pictures[0].head == f"{NAMES[0]} \u2192 {NAMES[1]}"


def test_review_asks_for_nothing_that_training_would_not_use(run: RunFolder, tmp_path: Path) -> None:
    def asked(folder: RunFolder) -> list[str]:
        return [row["image_id"] for row in csv.DictReader(io.StringIO(folder.read("review.csv").decode()))]

    other = RunFolder.at(shutil.copytree(run.path, tmp_path / "run"))
    first = asked(other)
    assert not held_out(row_numbers(first), 0.1).any()
    (name,) = [name for name in (other / "candidates").entries() if name.endswith(".parquet")]
    table = pq.read_table(f"{other.path}/candidates/{name}")
    told = pa.array([row in first[:20] for row in table["image_id"].to_pylist()])
    column = table.column_names.index("trusted")
    write_table(other / "candidates", name, table.set_column(column, "trusted", told))
    write_report(other)
    assert len(asked(other)) == 100
    assert not set(first[:20]) & set(asked(other))
    second = asked(other)
    none_of_these = pa.array([row in second[:20] for row in table["image_id"].to_pylist()])
    write_table(other / "candidates", name, table.append_column("excluded", none_of_these))
    write_report(other)
    assert not set(second[:20]) & set(asked(other))


def test_private_pools_show_no_picture_and_no_review(run: RunFolder, tmp_path: Path) -> None:
    other = RunFolder.at(shutil.copytree(run.path, tmp_path / "run"))
    config = run_config(other, CLASSES, report={"pictures": 0, "review": 0, "baselines": False})
    other.write_config(config)
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
def test_a_report_is_written_whatever_is_missing(run: RunFolder, tmp_path: Path, missing: str) -> None:
    other = RunFolder.at(shutil.copytree(run.path, tmp_path / "run"))
    other.delete(missing)
    write_report(other)
    assert "headline" in sections(other.read("report.html").decode())


def test_a_report_of_nothing_and_of_one_epoch(run: RunFolder, tmp_path: Path) -> None:
    empty = RunFolder.at(tmp_path / "empty")
    write_report(empty)
    assert sections(empty.read("report.html").decode()) == {"headline", "annotation"}
    other = RunFolder.at(shutil.copytree(run.path, tmp_path / "run"))
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

SORT_BY_RECALL = """(() => {
  const head = [...document.querySelectorAll("#test table.sortable th")].find(th => th.textContent === "recall");
  head.querySelector("button").click();
  const sorted = [...document.querySelectorAll("#test table.sortable tbody tr")].map(tr => tr.cells[2].textContent);
  return {
    wide: document.documentElement.scrollWidth, window: innerWidth, sorted, sort: head.getAttribute("aria-sort"),
    broken: [...document.images].filter(image => image.loading !== "lazy" && !image.naturalWidth).length,
    images: document.images.length, ink: getComputedStyle(document.body).color,
  };
})()"""


@needs_chromium
@pytest.mark.parametrize(("width", "name"), [(390, "phone"), (1280, "desktop")])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_renders_in_a_browser(run: RunFolder, devtools: str, width: int, name: str, scheme: str) -> None:
    picture = SCREENSHOTS / f"report-{name}-{scheme}.png"

    async def look() -> dict[str, Any]:
        async with tab(devtools) as page:
            await page.size(width, 2400)
            await page.dark(scheme == "dark")
            await page.call("Page.navigate", url=Path(run.path, "report.html").as_uri())
            await page.until("document.readyState === 'complete' && !!document.querySelector('#settings')")
            shown: dict[str, Any] = await page.run(SORT_BY_RECALL)
            await page.screenshot(picture)
            assert not page.errors()
            return shown

    shown = asyncio.run(look())
    assert shown["wide"] <= shown["window"] == width, "the page scrolls sideways"
    assert shown["images"] > 10
    assert shown["broken"] == 0
    assert shown["sort"] == "ascending"
    assert shown["sorted"] == sorted(shown["sorted"], key=lambda text: float(text or 0))
    light = sum(map(int, re.findall(r"\d+", shown["ink"])[:3])) > 3 * 128
    assert light == (scheme == "dark")
    assert picture.stat().st_size > 10_000


@needs_chromium
def test_a_console_error_would_be_seen(tmp_path: Path, devtools: str) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<script>nothing.at.all()</script>")

    async def look() -> list[str]:
        async with tab(devtools) as page:
            await page.call("Page.navigate", url=bad.as_uri())
            await page.until("document.readyState === 'complete' && location.pathname.endsWith('bad.html')")
            return page.errors()

    assert "nothing is not defined" in str(asyncio.run(look()))
