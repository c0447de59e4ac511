"""The Hub: a push and a load through a server that speaks its protocol, and everything that can be refused."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hub_server import READER, TOKEN, Hub, hub_server
from labelled_run import NAMES, PICTURES, labelled_run, purify_by_hand

import coreg_ray
from coreg_ray.commands import push
from coreg_ray.config import StudentConfig
from coreg_ray.deploy.export import write
from coreg_ray.deploy.model import Model, new_network
from coreg_ray.errors import UserError
from coreg_ray.run.folder import RunFolder

pytest.importorskip("huggingface_hub")
STUDENT = StudentConfig(resolution=12, width=4)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hub_server() as running:
        yield running


@pytest.fixture(autouse=True)
def environment(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who is logged in, with an empty cache of their own."""
    hub.repos.clear()
    hub.asked.clear()
    settings = {
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    constants: Any = import_module("huggingface_hub.constants")  # read from the environment, once
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    downloads = import_module("huggingface_hub.file_download")  # of older versions, which have a copy of it
    for module in (constants, downloads):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf/token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # newer than the lowest version


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with labels and an (untrained) model."""
    folder = labelled_run(tmp_path)
    purify_by_hand(folder)
    origin = {"configuration": {"source": {"path": str(tmp_path / "pool")}, "test": {"path": None}}}
    networks: Any = {"a": new_network(STUDENT, len(NAMES))}
    model = Model(NAMES, STUDENT, torch.nn.ModuleDict(networks).eval(), 1.5, origin)
    write(model, folder.model, (folder.read_config() or coreg_ray.Config()).export.model_copy(update={"onnx": False}))
    return folder


def head(repo: Any) -> dict[str, Any]:
    _, text, _ = repo.newest["README.md"].decode().split("---\n", 2)
    return dict(yaml.safe_load(text))


def test_what_is_pushed_by_one_process_is_loaded_by_another(hub: Hub, run: RunFolder, tmp_path: Path) -> None:
    run.model.write("notes.txt", "mine")
    ended = subprocess.run(
        [sys.executable, "jobs/push.py", run.path, "org/birds", "--licence", "apache-2.0"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert f"{hub.address}/org/birds has it (private, commit " in ended.stdout
    repo = hub.repos["models/org/birds"]
    assert repo.private
    assert len(repo.commits) == 2  # the empty one, and all of it at once
    assert sorted(repo.newest) == ["README.md", "model.json", "model.safetensors"]
    assert repo.newest["model.safetensors"] in repo.large
    assert head(repo) == {
        "license": "apache-2.0",
        "library_name": "coreg-ray",
        "pipeline_tag": "image-classification",
        "tags": ["weak-supervision"],
    }
    assert 'coreg_ray.load("hf://org/birds")' in repo.newest["README.md"].decode()
    sent = b"".join(repo.newest.values())
    assert str(tmp_path).encode() not in sent  # no folder of this machine
    assert json.loads(repo.newest["model.json"])["provenance"]["configuration"]["source"]["path"] == "pool"
    pixels = np.zeros((2, 12, 12, 3), np.uint8)
    expected = coreg_ray.load(f"{run.path}/model").predict(pixels).probabilities
    np.testing.assert_array_equal(coreg_ray.load("hf://org/birds").predict(pixels).probabilities, expected)


def test_only_what_is_needed_is_fetched_and_the_cache_serves_without_a_network(
    hub: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.model.write("model.json", json.dumps({**run.model.read_json("model.json"), "files": {
        **run.model.read_json("model.json")["files"], "model.onnx": "0"}}))  # fmt: skip
    run.model.write("model.onnx", b"o" * 5000)
    push.main([run.path, "org/birds"])
    first = hub.repos["models/org/birds"].commits[-1][0]
    assert "model.onnx" in hub.repos["models/org/birds"].newest
    hub.asked.clear()
    assert coreg_ray.load("hf://org/birds").classes == NAMES
    assert {line.rsplit("/", 1)[1] for line in hub.asked if "resolve" in line} == {"model.json", "model.safetensors"}
    card = run.model.read_json("model.json")
    run.model.delete("model.onnx")
    run.model.write("model.json", json.dumps({**card, "temperature": 3.0}))
    push.main([run.path, "org/birds"])
    assert "model.onnx" not in hub.repos["models/org/birds"].newest  # it belongs to other weights
    assert coreg_ray.load("hf://org/birds").temperature == 3.0
    assert coreg_ray.load(f"hf://org/birds@{first}").temperature == 1.5
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    assert coreg_ray.load("hf://org/birds").temperature == 3.0
    assert coreg_ray.load(f"hf://org/birds@{first}").temperature == 1.5
    monkeypatch.setattr(import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)  # else it tries for long
    assert coreg_ray.load("hf://org/birds").temperature == 3.0
    with pytest.raises(UserError, match=r"hf://org/other cannot be fetched, and is not whole in the Hub's cache"):
        coreg_ray.load("hf://org/other")


@pytest.mark.parametrize("pictures", [False, True])
def test_labels_are_a_data_set(hub: Hub, run: RunFolder, pictures: bool, capsys: pytest.CaptureFixture[str]) -> None:
    push.main([run.path, "org/birds", "--labels", "true", *(["--pictures", "true"] if pictures else [])])
    assert "name no licence" in capsys.readouterr().out
    repo = hub.repos["datasets/org/birds-labels"]
    assert repo.private
    assert head(hub.repos["models/org/birds"])["datasets"] == ["org/birds-labels"]
    (data,) = (name for name in repo.newest if name != "README.md")
    told = head(repo)
    (split,) = told["configs"][0]["data_files"]
    assert data == ("data/train-00000.parquet" if pictures else "labels.parquet")
    assert Path(data).match(split["path"])
    table = pq.read_table(io.BytesIO(repo.newest[data]))
    assert sorted(table["image_id"].to_pylist()) == sorted(PICTURES)
    assert ("image" in table.column_names) is pictures
    assert "license" not in told
    text = repo.newest["README.md"].decode()
    assert "Labels of votes and networks together: 1 trusted, " in text
    assert "`=SUM(A1)`" in text
    push.main([run.path, "org/birds", "--labels", "true", *(["--pictures", "true"] if not pictures else [])])
    assert len(repo.newest) == 2  # those of the other form are gone


def test_a_private_push_never_goes_to_a_public_place(hub: Hub, run: RunFolder) -> None:
    push.main([run.path, "org/birds", "--private", "false"])
    assert not hub.repos["models/org/birds"].private
    hub.asked.clear()
    with pytest.raises(UserError, match=r"org/birds is there and public.*give --private false"):
        push.main([run.path, "org/birds"])
    assert not hub.changes
    push.main([run.path, "org/birds", "--private", "false"])


@pytest.mark.parametrize(
    ("words", "settings", "reason"),
    [
        (["birds"], {}, "birds is no name of a repository; write ORG/NAME"),
        (["org/a--b"], {}, "is no name of a repository"),
        (["org/../x"], {}, "is no name of a repository"),
        ([], {}, "alone is given; write .* RUN ORG/NAME"),
        (["org/birds"], {"HF_TOKEN": ""}, "nobody is logged in to the Hub; give `hf auth login`"),
        (["org/birds"], {"HF_TOKEN": "hf_wrong"}, r"does not let this login write there \(status 401\)"),
        (
            ["org/birds"],
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            r"the Hub cannot be reached \(.*what was there is as",
        ),
        (["org/birds", "--licence", "Apache 2"], {}, "licence: 'Apache 2' is no identifier of a licence"),
        (["org/birds", "--pictures", "true"], {}, "add --labels true"),
        (["org/birds", "--privat", "true"], {}, "--privat is no setting of this command"),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence_before_anything_is_sent(
    words: list[str], settings: dict[str, str], reason: str, hub: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=reason) as error:
        push.main([run.path, *words])
    assert "\n" not in str(error.value)
    assert not hub.changes


def test_one_who_may_not_write_is_told_so(hub: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"other/birds: the Hub does not let this login write there \(status 403\)"):
        push.main([run.path, "other/birds"])
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(UserError, match=r"does not let this login write there \(status 403\)"):
        push.main([run.path, "org/birds"])
    assert not hub.repos


def test_a_run_without_a_model_is_refused(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(UserError, match="has no model yet; train first"):
        push.main([labelled_run(tmp_path).path, "org/birds"])
    with pytest.raises(UserError, match=r"holds no config\.yaml, so it is no run"):
        push.main([str(tmp_path / "nothing"), "org/birds"])
    assert not hub.asked


def test_what_cannot_be_loaded_says_why(hub: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    push.main([run.path, "org/birds", "--labels", "true"])
    cases = {
        "hf://org/birds@none": "there is no such branch, tag or commit",
        "hf://org/none": "is no repository that can be seen",
        "hf://org/birds/model": "names no model on the Hub; write hf://ORG/NAME",
        "hf://org/birds-labels": "is no repository that can be seen",
    }
    for place, reason in cases.items():
        with pytest.raises(UserError, match=reason):
            coreg_ray.load(place)
    hub.repos["models/org/birds"].commits.append(("1" * 40, {"README.md": b"other"}))
    with pytest.raises(UserError, match="lacks a file that a model of coreg-ray has"):
        coreg_ray.load("hf://org/birds")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="is no repository that can be seen"):
        coreg_ray.load("hf://org/birds")


def test_a_file_that_a_card_names_elsewhere_is_not_sent(hub: Hub, run: RunFolder) -> None:
    card = run.model.read_json("model.json")
    run.model.write("model.json", json.dumps({**card, "files": {**card["files"], "../config.yaml": "0"}}))
    push.main([run.path, "org/birds"])
    assert not any("config" in name for name in hub.repos["models/org/birds"].newest)


def test_without_the_package_the_extra_is_named(run: RunFolder) -> None:
    code = (
        "import sys\nsys.modules['huggingface_hub'] = None\nimport coreg_ray\n"
        "try:\n    coreg_ray.load('hf://org/birds')\nexcept coreg_ray.UserError as error:\n    print(error)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True, env=dict(os.environ)
    )
    assert 'pip install "coreg-ray[hub]"' in ended.stdout
