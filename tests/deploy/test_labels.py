"""Labels in the forms of other tools, read by these tools' own readers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from labelled_run import NAMES, PICTURES, TRUSTED, color, labelled_run, purify_by_hand
from PIL import Image

from coreg_ray.commands import labels as command
from coreg_ray.deploy.purified import SCHEMA
from coreg_ray.errors import UserError
from coreg_ray.pure.trust import Evidence
from coreg_ray.run.cells import restored
from coreg_ray.run.trust import trust_figures

Write = Callable[..., Path]
CLASSES = {image_id: NAMES[number] for image_id, (number, _) in PICTURES.items()}


@pytest.fixture
def write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Write:
    """`coreg-ray labels` over the small run."""
    purify_by_hand(labelled_run(tmp_path))

    def call(form: str, *words: str, output: str = "out") -> Path:
        command.main([str(tmp_path / "run"), "--format", form, "--output", str(tmp_path / output), *words])
        assert str(tmp_path / output) in capsys.readouterr().out
        assert not list(tmp_path.glob(".*.partial"))
        return tmp_path / output

    return call


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_has_every_column_and_no_formula(write: Write) -> None:
    rows = lines(write("csv", output="labels.csv"))
    assert list(rows[0]) == SCHEMA.names
    assert {restored(row["image_id"]): restored(row["label"]) for row in rows} == CLASSES
    by_id = {restored(row["image_id"]): row for row in rows}
    formula = by_id["=3.png"]
    assert (formula["image_id"], formula["label"]) == ("'=3.png", "'=SUM(A1)")
    assert json.loads(by_id["two/1.png"]["candidates"]) == ["a/b", "CON"]
    assert (by_id["two/1.png"]["changed"], by_id[TRUSTED]["annotator_label"]) == ("false", "")


def test_a_folder_is_a_place_for_the_file_too(write: Write) -> None:
    assert len(lines(write("csv", output="here") / "labels.csv")) == len(PICTURES)


def test_parquet_is_the_table_itself(write: Write) -> None:
    table = pq.read_table(write("parquet", output="labels.parquet"))
    assert table.schema.equals(SCHEMA)
    assert dict(zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)) == CLASSES


def test_status_and_probability_choose_the_labels(write: Write) -> None:
    rows = lines(write("csv", "--status", "trusted,clean", output="a.csv"))
    assert {row["status"] for row in rows} == {"trusted", "clean"}
    assert len(rows) == 5  # all but a doubtful one and an outlier
    probability = {row["image_id"]: float(row["probability"]) for row in lines(write("csv", output="b.csv"))}
    least = sorted(probability.values())[3]
    kept = lines(write("csv", "--min_probability", str(least - 1e-4), output="c.csv"))
    assert {row["image_id"] for row in kept} == {name for name, value in probability.items() if value >= least}
    with pytest.raises(UserError, match=r"maybe is no status; use some of trusted, clean, doubtful, outlier"):
        write("csv", "--status", "maybe", output="d.csv")


def test_labels_that_are_not_to_be_trusted_above_the_annotators_are_written_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = labelled_run(tmp_path)
    purify_by_hand(run)
    manifest = run.read_purified_manifest()
    assert manifest is not None

    def made(whose: str, evidence: Evidence) -> dict[str, str]:
        run.write_purified_manifest(replace(manifest, figures=trust_figures(evidence)))
        output = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
        words = ["--format", "csv", "--output", str(output), "--whose", whose]
        command.main([str(tmp_path / "run"), *words])
        return {row["image_id"]: row["clean_a"] for row in lines(output)}  # which only networks know

    good, bad = Evidence(True, 0.1, 0.9, 50), Evidence(False, 0.3, 0.5, 50)
    assert made("auto", good) == made("both", bad)
    capsys.readouterr()
    own = made("auto", bad)
    assert own == made("annotator", good)
    assert set(own.values()) == {""}
    assert "" not in made("auto", good).values()
    said = capsys.readouterr().out
    assert "the annotator's own; --whose both writes the others" in said
    assert "are not to be trusted above the votes alone" in said


@pytest.mark.parametrize("how", ["link", "copy"])
def test_torchvision_reads_the_folder_of_pictures(write: Write, how: str) -> None:
    from torchvision.datasets import ImageFolder

    place = write("imagefolder", "--pictures", how)
    read = ImageFolder(str(place))
    folders = json.loads((place / "classes.json").read_text())
    told = {restored(row["file"]): row for row in lines(place / "images.csv")}
    assert len(read) == len(PICTURES)
    assert set(read.classes) == set(folders)
    for path, number in read.samples:
        file = Path(path)
        row = told[file.relative_to(place).as_posix()]
        image_id = restored(row["image_id"])
        assert folders[read.classes[number]] == restored(row["label"]) == CLASSES[image_id]
        assert file.is_symlink() == (how == "link")
        pixel = np.asarray(Image.open(path).convert("RGB"))[3, 3].astype(int)
        assert np.abs(pixel - color(image_id)).max() <= 2


@pytest.mark.parametrize("how", ["link", "copy"])
def test_datasets_loads_labels_and_pictures(write: Write, how: str, tmp_path: Path) -> None:
    import datasets

    place = write("huggingface", "--pictures", how)
    read = datasets.load_dataset(str(place), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.features["label"].names == NAMES
    assert isinstance(read.features["image"], datasets.Image)
    assert {row["image_id"]: NAMES[row["label"]] for row in read} == CLASSES
    for row in read:
        pixel = row["image"].convert("RGB").getpixel((3, 3))
        assert np.abs(np.subtract(pixel, color(row["image_id"]))).max() <= 2
    by_id = {row["image_id"]: row for row in read}
    assert by_id["two/1.png"]["candidates"] == ["a/b", "CON"]
    assert by_id[TRUSTED]["annotator_label"] is None


def test_cleanlab_takes_the_arrays(write: Write) -> None:
    place = write("cleanlab")
    arrays = {name: np.load(place / f"{name}.npy") for name in ("labels", "annotator_labels", "pred_probs")}
    ids = [restored(row["image_id"]) for row in lines(place / "image_ids.csv")]
    assert json.loads((place / "classes.json").read_text()) == NAMES
    assert {image_id: NAMES[label] for image_id, label in zip(ids, arrays["labels"].tolist(), strict=True)} == CLASSES
    assert (arrays["labels"].dtype, arrays["pred_probs"].dtype) == (np.int64, np.float32)
    assert arrays["pred_probs"].shape == (len(PICTURES), len(NAMES))
    np.testing.assert_allclose(arrays["pred_probs"].sum(axis=1), 1, atol=1e-6)
    assert (arrays["pred_probs"].argmax(axis=1) == arrays["labels"]).all()
    count = pytest.importorskip("cleanlab.count")
    filtering = pytest.importorskip("cleanlab.filter")
    assert count.num_label_issues(arrays["labels"], arrays["pred_probs"]) == 0
    assert not filtering.find_label_issues(arrays["labels"], arrays["pred_probs"]).any()


def test_annotation_alone_gives_the_annotators_labels(tmp_path: Path) -> None:
    labelled_run(tmp_path)
    words: list[Any] = [str(tmp_path / "run"), "--output", str(tmp_path / "own.csv"), "--format", "csv"]
    command.main(words)
    rows = {restored(row["image_id"]): row for row in lines(tmp_path / "own.csv")}
    assert {restored(row["label"]) for row in rows.values()} <= set(NAMES)
    assert all(not row["clean_a"] and not row["clean_b"] for row in rows.values())
    assert rows["two/deep/1.png"]["label"] == ".."  # equal votes: the lowest class
    command.main([str(tmp_path / "run"), "--output", str(tmp_path / "own"), "--format", "cleanlab"])
    probs = np.load(tmp_path / "own/pred_probs.npy")
    assert sorted(probs.max(axis=1)) == pytest.approx([1 / 2, *[2 / 3] * 3, 1, 1, 1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"which run\? write coreg-ray labels RUN"),
        (["RUN"], "add --output PATH"),
        (["RUN", "--output", "RUN"], "is there already; remove it"),
        (["NONE", "--output", "x"], r"holds no config\.yaml, so it is no run"),
        (["RUN", "--output", "x", "--min_probability", "2"], "min_probability=2"),
        (["RUN", "--output", "x", "--min_probability", "0.5", "--status", "clean"], "ask for less"),
        (["RUN", "--output", "s3://b/x", "--format", "imagefolder", "--pictures", "link"], "needs a local --output"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(tmp_path: Path, words: list[str], message: str) -> None:
    labelled_run(tmp_path)
    names = {"RUN": str(tmp_path / "run"), "NONE": str(tmp_path / "pool"), "x": str(tmp_path / "x")}
    form = [] if "--format" in words else ["--format", "csv"]
    with pytest.raises(UserError, match=message):
        command.main([*(names.get(word, word) for word in words), *form])
    assert not (tmp_path / "x").exists()


def test_links_need_files_and_copies_do_not(tmp_path: Path) -> None:
    run = labelled_run(tmp_path)
    labels = [str(tmp_path / "run"), "--format", "imagefolder", "--output", str(tmp_path / "out"), "--pictures", "link"]
    with pytest.raises(UserError, match=r"the pool is source\.kind=parquet; use --pictures copy"):
        command.main([*labels, "--source.kind", "parquet"])
    gif = tmp_path / "pool/one/1.gif"
    (tmp_path / "pool/one/1.png").rename(gif)
    assert run.candidates.exists()
    command.main(labels)  # the picture that is gone is left out, the new one has no label
    assert len(list((tmp_path / "out").rglob("*-*.*"))) == len(PICTURES) - 1


def test_what_cannot_be_linked_is_copied_as_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import labelled_run as small

    pictures = {"one/1.gif" if name == "one/1.png" else name: value for name, value in PICTURES.items()}
    monkeypatch.setattr(small, "PICTURES", pictures)
    labelled_run(tmp_path)
    Image.new("RGB", (9, 7), (1, 2, 3)).save(tmp_path / "pool/one/1.gif", "GIF")
    words = [str(tmp_path / "run"), "--format", "imagefolder", "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"one/1\.gif ends in \.gif.*use --pictures copy"):
        command.main([*words, "--pictures", "link"])
    assert not (tmp_path / "out").exists()
    command.main(words)
    (made,) = (tmp_path / "out/cat").glob("1-*.png")
    assert Image.open(made).format == "PNG"
