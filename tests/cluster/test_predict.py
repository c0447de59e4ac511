"""Batch prediction through Ray: every image once, restarts, what cannot be read, and scores on labelled sources."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import parquet
from PIL import Image
from torch import nn
from toy import CLASSES, SIDE, STUDENT, images

from coreg_ray.annotation.arrow import read_table, write_table
from coreg_ray.annotation.parts import Part, parts
from coreg_ray.annotation.rejects import NOT_FINITE
from coreg_ray.cluster import predict as ray_predict
from coreg_ray.cluster.predict import evaluate, predict, write_predictions
from coreg_ray.commands import evaluate as evaluate_command
from coreg_ray.commands import predict as predict_command
from coreg_ray.config import ExportConfig
from coreg_ray.deploy.export import write
from coreg_ray.deploy.model import Model, new_network
from coreg_ray.errors import UserError
from coreg_ray.images.folder import ImageFolder
from coreg_ray.run.storage import Folder

pytestmark = [pytest.mark.usefixtures("ray_cluster")]
JOBS = Path(__file__).parents[2] / "jobs"


def new_model(folder: Path, seed: int = 0) -> Folder:
    """An untrained model: what it says is arbitrary but fixed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = new_network(STUDENT, len(CLASSES))
        nn.init.normal_(network.classifier.weight, std=3.0)
    torch.manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    write(Model(CLASSES, STUDENT, nn.ModuleDict({"a": network}).eval()), Folder.at(folder), ExportConfig(onnx=False))
    return Folder.at(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return new_model(tmp_path_factory.mktemp("model"))


def draw_pictures(folder: Path) -> None:
    """40 images in a sub-folder for each class, and two files that are none."""
    pixels, labels = images(40, seed=3)
    for number, (pixel, label) in enumerate(zip(pixels.numpy(), labels.tolist(), strict=True)):
        place = folder / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixel).save(place / f"{number:02d}.png")
    (place / "empty.png").touch()
    (place / "text.jpg").write_text("<script>alert(1)</script>")


@pytest.fixture(scope="module")
def predicted(model: Folder, tmp_path_factory: pytest.TempPathFactory, _ray_session: None) -> Path:
    """`pictures/`, and in `out/` what `coreg-ray predict` wrote about them."""
    place = tmp_path_factory.mktemp("predicted")
    draw_pictures(place / "pictures")
    source = ["--source.kind", "folder", "--source.path", str(place / "pictures")]
    predict_command.main(["--model", model.path, *source, "--output", str(place / "out"), "--top_k", "3"])
    return place


def test_predictions_are_the_models_own_and_broken_files_are_reported(model: Folder, predicted: Path) -> None:
    output = Folder.at(predicted / "out")
    table = parquet(output / "predictions").to_pylist()
    assert len(table) == 40
    class_names, probabilities = Model.load(model).predict([predicted / "pictures" / row["image_id"] for row in table])
    assert [row["class"] for row in table] == class_names
    np.testing.assert_allclose([row["probability"] for row in table], probabilities.max(1), atol=1e-5)
    order = np.argsort(-probabilities, axis=1)[:, :3]
    assert [row["top_classes"] for row in table] == [[CLASSES[k] for k in row] for row in order]
    top = [row["top_probabilities"] for row in table]
    np.testing.assert_allclose(top, np.take_along_axis(probabilities, order, 1), atol=1e-5)
    reasons = {Path(row["image_id"]).name: row["reason"] for row in parquet(output / "rejects").to_pylist()}
    assert reasons == {"empty.png": "empty file", "text.jpg": "not an image"}


def test_probabilities_that_are_not_finite_are_rejects(tmp_path: Path) -> None:
    folder, rejects = Folder.at(tmp_path / "predictions"), Folder.at(tmp_path / "rejects")
    batch = {
        "image_id": np.array(["a", "b"], dtype=object), "content": np.array(["1", "2"], dtype=object),
        "probabilities": np.array([[0.2, 0.8], [np.nan, np.nan]], np.float32),
    }  # fmt: skip
    line = write_predictions(
        batch, folder=folder, rejects=rejects, run=0, fingerprint="f" * 8, class_names=["x", "y"], top_k=1
    )
    assert line == {"images": [1], "not_finite": [1]}
    assert [(row["image_id"], row["class"]) for row in parquet(folder).to_pylist()] == [("a", "y")]
    assert [row["reason"] for row in parquet(rejects).to_pylist()] == [NOT_FINITE]


@pytest.mark.cluster
def test_a_run_that_was_cut_short_goes_on_and_changed_images_are_predicted_again(
    model: Folder, predicted: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(predicted, tmp_path / "copy"))
    pictures, output = place / "pictures", Folder.at(place / "out")
    whole = {row["image_id"]: row["class"] for row in parquet(output / "predictions").to_pylist()}
    (part,) = parts(output / "predictions")
    table = read_table(output / "predictions", part.name)
    write_table(output / "predictions", Part(part.run, "0" * 16, part.text).name, table.slice(0, 25))
    (output / "predictions").delete(part.name)  # as if the run had been killed after 25 images
    removed, changed = table["image_id"].to_pylist()[:2]
    (pictures / removed).unlink()
    Image.fromarray(np.full((SIDE, SIDE, 3), 255, np.uint8)).save(pictures / changed)

    figures = predict(model, ImageFolder.at(str(pictures), None), output, top_k=3)
    assert figures.predicted_images == 15 + 1
    again = {row["image_id"]: row["class"] for row in parquet(output / "predictions").to_pylist()}
    assert again.keys() == whole.keys() - {removed}
    assert all(again[name] == whole[name] for name in again if name != changed)
    assert len(parquet(output / "predictions")) == 39


def test_the_output_of_another_model_or_of_something_else_is_refused(
    model: Folder, predicted: Path, tmp_path: Path
) -> None:
    source, output = ImageFolder.at(str(predicted / "pictures"), None), Folder.at(predicted / "out")
    with pytest.raises(UserError, match="another model"):
        predict(new_model(tmp_path / "other", seed=1), source, output, top_k=3)
    with pytest.raises(UserError, match="top_k"):
        predict(model, source, output, top_k=2)
    with pytest.raises(UserError, match="no predictions"):
        predict(model, source, Folder.at(predicted / "pictures"))
    with pytest.raises(UserError, match=r"no model\.json"):
        predict(output, source, Folder.at(tmp_path / "third"))


@pytest.mark.cluster
def test_scores_on_a_labelled_folder_by_hand(
    model: Folder, predicted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = predicted / "pictures"
    folder = ["--test.kind", "folder", "--test.path", str(pictures), "--output", str(tmp_path)]
    evaluate_command.main(["--model", model.path, *folder])
    printed, figures = capsys.readouterr().out.splitlines(), Folder.at(tmp_path).read_json("metrics.json")
    paths = sorted(pictures.rglob("[0-9]*.png"))
    answered = Model.load(model).predict(paths).probabilities.argmax(1)
    true = np.array([CLASSES.index(path.parent.name) for path in paths])
    assert figures["test/images"] == 40
    assert figures["test/accuracy"] == pytest.approx((answered == true).mean())
    assert 0 < figures["test/calibration_error"] < 1
    for number, line in enumerate(printed[1:5]):
        recall = (answered == true)[true == number].mean()
        assert line.split()[:3] == [CLASSES[number], str((true == number).sum()), f"{recall:.3f}"]
    assert printed[-1].endswith("40 images, 2 labelled ones unreadable")


def test_a_source_without_labels_cannot_be_scored(model: Folder, predicted: Path) -> None:
    with pytest.raises(UserError, match="no labels"):
        evaluate(model, ImageFolder.at(str(predicted / "pictures"), None))


def test_labels_beyond_the_models_classes_are_refused(model: Folder, predicted: Path) -> None:
    names = {name: number for number, name in enumerate(["nothing", *CLASSES])}  # as of a set with one class more
    with pytest.raises(UserError, match=f"knows {len(CLASSES)} classes"):
        evaluate(model, ImageFolder.at(str(predicted / "pictures"), names))


def test_the_default_digits_are_no_test_for_a_model_of_something_else(model: Folder, tmp_path: Path) -> None:
    other = Folder.at(shutil.copytree(model.path, tmp_path / "model"))
    source = {"configuration": {"source": {"kind": "folder"}}}
    other.write_json("model.json", other.read_json("model.json") | {"provenance": source})
    with pytest.raises(UserError, match=r"give test\.kind"):
        evaluate_command.main(["--model", other.path])


def test_a_path_without_its_kind_is_not_passed_over(model: Folder, predicted: Path, tmp_path: Path) -> None:
    source = ["--source.path", str(predicted / "pictures"), "--output", str(tmp_path)]
    with pytest.raises(UserError, match=r"source\.kind"):
        predict_command.main(["--model", model.path, *source])
    assert not list(tmp_path.iterdir())


def test_a_single_image_needs_no_ray(model: Folder, predicted: Path) -> None:
    image = str(next(predicted.rglob("[0-9]*.png")))
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['predict.py', '--model', {model.path!r}, '--single', {image!r}]\n"
        f"runpy.run_path({str(JOBS / 'predict.py')!r}, run_name='__main__')\n"
        "assert 'ray' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    class_names, probabilities = Model.load(model).predict(image)
    assert done.stdout.split("\n")[0] == f"{probabilities.max():.4f}  {class_names[0]}"


def test_a_single_file_that_is_no_image_is_the_users_mistake(model: Folder, predicted: Path) -> None:
    text = next(predicted.rglob("text.jpg"))
    with pytest.raises(UserError, match="not an image"):
        predict_command.main(["--model", model.path, "--single", str(text)])


def test_every_core_works_for_one_actor(model: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(6))
    ray_predict._Predictor(model.read_json("model.json"), ray_predict.Pool(actors=1))
    ray_predict._Predictor(model.read_json("model.json"), ray_predict.Pool(actors=4))
    assert seen == [6, 1]
