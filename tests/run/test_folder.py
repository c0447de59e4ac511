"""What a run folder holds and where: its own files, those of another run, and whose folder it is."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pyarrow import fs

import coreg_ray
from coreg_ray.config import Config
from coreg_ray.config.fit_to_pool import fitted_to_pool
from coreg_ray.errors import UserError
from coreg_ray.metrics import HISTORY as COLUMNS
from coreg_ray.run.folder import CONFIG, HISTORY, LINKS, MANIFEST, METRICS, USED, VERSIONS, RunFolder, Split
from coreg_ray.run.records import Baseline, CandidateFigures, CandidateManifest, RowsManifest
from coreg_ray.run.search_folder import SearchFolder
from coreg_ray.run.storage import Folder


@pytest.fixture(params=["local", "remote"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    """An empty run folder; `remote` is one that cannot be told from one on an object store."""
    if request.param == "local":
        return RunFolder.at(tmp_path / "run")
    return RunFolder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/run")


def beside(run: RunFolder, name: str) -> RunFolder:
    """Another run on the same file system."""
    return RunFolder(run.filesystem, f"{run.path}-{name}")


def config_of(run: RunFolder, **settings: Any) -> Config:
    return Config(output=run.path, **settings)


# Where things lie, and what another run has lent.


@pytest.mark.parametrize("split", get_args(Split))
def test_everything_lies_in_the_run_itself(run: RunFolder, split: Split) -> None:
    places = {
        f"annotations/{split}": run.annotations(split), f"rejects/{split}": run.rejects(split),
        f"labels/{split}": run.labels(split), f"rows/{split}": run.rows(split), "candidates": run.candidates,
        "checkpoints": run.checkpoints, "model": run.model, "ray": run.ray,
    }  # fmt: skip
    assert {name: folder.path for name, folder in places.items()} == {name: f"{run.path}/{name}" for name in places}
    assert not run.exists()  # to ask where something lies makes nothing


def test_links_lead_elsewhere(run: RunFolder) -> None:
    other, third = beside(run, "other"), beside(run, "third")
    other.write("annotations/pool/clip/part.parquet", "theirs")
    third.write("candidates/part.parquet", "their sets")
    run.link(
        annotations=other / "annotations", labels=other / "labels", rows=third / "rows", candidates=third.candidates
    )
    assert (run.annotations("pool") / "clip").read("part.parquet") == b"theirs"
    assert run.candidates.read("part.parquet") == b"their sets"
    assert run.labels("test").path == f"{other.path}/labels/test"
    assert run.rows("pool").path == f"{third.path}/rows/pool"
    again = RunFolder(run.filesystem, run.path)  # whoever opens the folder later is led there too
    assert again.resolve("annotations").path == f"{other.path}/annotations"
    for mine in (run.rejects("pool"), run.checkpoints, run.model):
        assert mine.path.startswith(f"{run.path}/")


def test_what_is_written_never_lands_in_another_run(run: RunFolder) -> None:
    other = beside(run, "other")
    run.link(annotations=other / "annotations", labels=other / "labels", rows=other / "rows")
    for name in ("annotations", "labels", "rows"):
        assert run.own(name, "test").path == f"{run.path}/{name}/test"
    run.write_used("pool", ["clip"])
    run.write_rows_manifest("pool", RowsManifest(32, "0123456789abcdef"))
    assert not other.exists()
    assert run.own("annotations", "pool").entries() == [USED]


def test_links_are_taken_back_one_by_one(run: RunFolder) -> None:
    other = beside(run, "other")
    run.link(annotations=other / "annotations", rows=other / "rows")
    run.unlink("rows", "candidates")
    assert run.rows("pool").path == f"{run.path}/rows/pool"
    assert run.annotations("pool").path == f"{other.path}/annotations/pool"
    run.unlink("annotations")
    assert run.annotations("pool").path == f"{run.path}/annotations/pool"
    run.link(labels=other / "labels")
    run.link(rows=other / "rows")  # the last word counts
    assert run.labels("test").path == f"{run.path}/labels/test"


def test_taking_back_what_was_never_lent_writes_nothing(run: RunFolder) -> None:
    run.unlink("rows")
    assert not run.exists()


# Whose folder it is.


def test_an_empty_folder_becomes_the_runs(run: RunFolder) -> None:
    config = config_of(run, seed=3, method={"epochs": 70})
    run.claim(config)
    assert run.entries() == [CONFIG, VERSIONS]
    assert run.read_config() == config


def test_versions_lie_beside_the_settings(run: RunFolder) -> None:
    for name in ("claim", "claim_for_annotation", "write_config"):
        folder = beside(run, name)
        getattr(folder, name)(config_of(folder))
        assert folder.entries() == [CONFIG, VERSIONS]
        versions = folder.read_json(VERSIONS)
        assert versions == {
            "coreg_ray": coreg_ray.__version__, "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "ray", "open_clip_torch")},
        }  # fmt: skip


def test_versions_are_those_of_the_last_command(run: RunFolder) -> None:
    run.claim(config_of(run))
    run.write_json(VERSIONS, {"coreg_ray": "0.0.1", "cuda": "9"})
    run.claim(config_of(run))
    assert run.read_json(VERSIONS)["coreg_ray"] == coreg_ray.__version__
    assert "cuda" not in run.read_json(VERSIONS)


def test_a_package_that_is_not_installed_has_no_version(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_ray(name: str) -> str:
        if name in ("ray", "open_clip_torch"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_ray)
    run.claim(config_of(run))
    assert set(run.read_json(VERSIONS)) == {"coreg_ray", "python", "torch"}


def test_a_run_goes_on_and_its_running_settings_may_change(run: RunFolder) -> None:
    run.claim(config_of(run))
    run.write("history.csv", "epoch\n")
    elsewhere = config_of(run, cluster={"max_failures": 7})
    run.claim(elsewhere)
    assert run.read_config() == elsewhere
    assert run.exists("history.csv")


def test_another_runs_settings_are_refused_by_name(run: RunFolder) -> None:
    run.claim(config_of(run))
    before = run.read(CONFIG)
    other = config_of(run, seed=1, method={"epochs": 90, "prior": "annotator"})
    with pytest.raises(UserError) as refusal:
        run.claim(other)
    assert str(refusal.value) == (
        f"--output {run.path} holds a run with other settings (method.epochs None -> 90; method.prior 'uniform' -> "
        "'annotator'; seed 0 -> 1); choose another --output, or continue with the settings in its config.yaml"
    )
    assert run.read(CONFIG) == before


def test_what_was_fitted_to_the_pool_is_what_empty_means_from_then_on(run: RunFolder) -> None:
    empty = config_of(run, method={"exchanges": 3, "epochs": 17})
    run.claim(empty)
    assert run.read_config() == empty
    fitted = fitted_to_pool(empty, 900)
    run.write_config(fitted)
    before = run.read(CONFIG)
    run.claim(empty)
    run.claim(fitted)
    assert run.read(CONFIG) == before
    batch = fitted.method.batch_size
    other = config_of(run, method={"exchanges": 3, "epochs": 17, "batch_size": 17})
    with pytest.raises(UserError, match=rf"other settings \(method\.batch_size {batch} -> 17\); choose"):
        run.claim(other)


def test_no_more_than_five_differences_are_named(run: RunFolder) -> None:
    run.claim(config_of(run))
    settings = {"epochs": 90, "batch_size": 9, "exchanges": 9, "lambda_u": 9, "ramp_epochs": 9, "queue_size": 90}
    with pytest.raises(UserError, match=r"method\.queue_size None -> 90\)") as refusal:
        run.claim(config_of(run, seed=9, method=settings))
    assert str(refusal.value).count(" -> ") == 5


def test_a_run_of_an_older_version_goes_on_as_what_it_was(run: RunFolder) -> None:
    """It knew no `method.weak_views` and took two."""
    run.claim(config_of(run, method={"weak_views": 2}))
    tree = yaml.safe_load(run.read(CONFIG))
    del tree["method"]["weak_views"]
    run.write(CONFIG, yaml.safe_dump(tree))
    older = run.read_config()
    assert older is not None
    assert older.method.weak_views == 2
    with pytest.raises(UserError, match=r"method\.weak_views 2 -> 1\)"):
        run.claim(config_of(run))
    run.claim(older)
    assert yaml.safe_load(run.read(CONFIG))["method"]["weak_views"] == 2


@pytest.mark.parametrize("text", ["method: {epochs: many}\n", "tomorrow: 1\n", "a: [\n", "just words\n", ""])
def test_settings_of_another_version_are_refused(run: RunFolder, text: str) -> None:
    run.write(CONFIG, text)
    message = rf"{run.path}/config.yaml is not for this version of coreg-ray \(.*use the version that wrote it"
    with pytest.raises(UserError, match=f"(?s){message}"):
        run.read_config()
    with pytest.raises(UserError, match=f"(?s){message}"):
        run.claim(config_of(run))
    assert run.read(CONFIG).decode() == text


def test_without_settings_there_is_no_configuration(run: RunFolder) -> None:
    assert run.read_config() is None


def test_a_folder_that_holds_something_else_is_refused(run: RunFolder) -> None:
    for name in ("thesis.tex", "a/b", "pictures/1.png", "z"):
        run.write(name, "mine")
    with pytest.raises(UserError, match=r"holds 4 entries \(a, pictures, thesis.tex\) and no run; choose an empty"):
        run.claim(config_of(run))
    with pytest.raises(UserError, match=r"holds 4 entries \(a, pictures, thesis.tex\) and no annotations; choose an"):
        run.claim_for_annotation(config_of(run))
    assert run.entries() == ["a", "pictures", "thesis.tex", "z"]


def test_a_folder_that_cannot_be_had_is_a_persons_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file/run"):
        for name in ("claim", "claim_for_annotation"):
            run = RunFolder.at(output)
            with pytest.raises(UserError, match=rf"--output {output} cannot be used \(.*\); choose another folder"):
                getattr(run, name)(config_of(run))

    def unreachable(*_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(Folder, "_info", unreachable)
    monkeypatch.setattr(Folder, "entries", unreachable)
    for name in ("claim", "claim_for_annotation"):
        with pytest.raises(UserError, match=r"cannot be used \(no route to host\); choose another folder"):
            getattr(run, name)(config_of(run))


def test_annotating_takes_any_run_and_says_with_which_settings(run: RunFolder) -> None:
    run.claim_for_annotation(config_of(run))
    run.write("annotations/pool/clip/part.parquet", "answers")
    other = config_of(run, seed=1, method={"epochs": 90})
    run.claim_for_annotation(other)
    assert run.read_config() == other


POOL: dict[str, Any] = {"kind": "folder", "path": "pictures", "classes": ["a", "b"]}


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"path": "others"}, r"source\.path '.*/pictures' -> '.*/others'"),
        ({"kind": "webdataset"}, r"source\.kind 'folder' -> 'webdataset'"),
        ({"kind": "huggingface", "name": "train"}, "source.name None -> 'train'"),
    ],
)
def test_the_answers_about_other_images_are_not_dropped(
    run: RunFolder, other: dict[str, Any], difference: str, kept: bool
) -> None:
    begun = config_of(run, source=POOL)
    run.claim_for_annotation(begun)
    run.claim_for_annotation(config_of(run, source={**POOL, **other}))  # nothing is annotated yet
    run.claim_for_annotation(begun)
    if kept:  # versions before did not
        run.write_origin(begun, "pool")
    run.write("annotations/pool/clip/part.parquet", "answers")
    before = run.read(CONFIG)
    with pytest.raises(UserError, match=rf"holds annotations of other pool images .*{difference}.* choose another"):
        run.claim_for_annotation(config_of(run, source={**POOL, **other}))
    with pytest.raises(UserError, match="holds annotations of other pool images"):
        run.refuse_other_images(config_of(run, source={**POOL, **other}), "pool")
    assert run.read(CONFIG) == before
    assert run.read("annotations/pool/clip/part.parquet") == b"answers"
    run.claim_for_annotation(config_of(run, source={**POOL, "path": "./pictures/", "classes": ["a", "c"]}))


def test_where_the_images_came_from_is_kept_in_full_and_without_keys(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run.write_origin(config_of(run, source=POOL), "pool")
    run.write("annotations/pool/clip/part.parquet", "answers")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds annotations of other pool images"):  # `pictures` means another folder
        run.refuse_other_images(config_of(run, source=POOL), "pool")
    run.refuse_other_images(config_of(run, source={**POOL, "path": str(tmp_path / "pictures")}), "pool")
    run.write_origin(config_of(run, source={**POOL, "path": "s3://KEY:SECRET@bucket/x/?region=eu"}), "pool")
    stored = run.read("annotations/pool/source.json").decode()
    assert "s3://bucket/x?region=eu" in stored
    assert "SECRET" not in stored
    run.refuse_other_images(config_of(run, source={**POOL, "path": "s3://OTHER:ONE@bucket/x?region=eu"}), "pool")


def test_other_test_images_are_refused_alike_and_none_are_no_others(run: RunFolder) -> None:
    test = {"kind": "folder", "path": "labelled"}
    run.write_origin(config_of(run, test=test), "test")
    run.write("annotations/test/clip/part.parquet", "answers")
    with pytest.raises(UserError, match=r"other test images \(test\.path .*remove .*annotations/test$"):
        run.claim_for_annotation(config_of(run, test={**test, "path": "others"}))
    run.claim_for_annotation(config_of(run))


def test_annotating_keeps_the_settings_of_a_trained_run(run: RunFolder) -> None:
    begun = config_of(run, method={"epochs": 70})
    run.claim(begun)
    run.write("checkpoints/epoch-000000/state.json", "{}")
    run.write_json(VERSIONS, {})
    before = run.read(CONFIG)
    run.claim_for_annotation(config_of(run, seed=1))
    assert run.read(CONFIG) == before
    assert run.read_config() == begun
    assert run.read_json(VERSIONS)["coreg_ray"] == coreg_ray.__version__


def test_annotations_without_settings_are_annotated_further(run: RunFolder) -> None:
    """For example brought here from another run."""
    run.write("annotations/pool/clip/part.parquet", "answers")
    with pytest.raises(UserError, match=r"holds 1 entries \(annotations\) and no run"):
        run.claim(config_of(run))
    run.claim_for_annotation(config_of(run))
    assert run.read_config() == config_of(run)


# What came of it.


def test_figures_are_added_and_replaced(run: RunFolder) -> None:
    assert run.read_metrics() == {}
    assert run.update_metrics({"test/accuracy": 0.5, "time/train_s": 3}) == {"test/accuracy": 0.5, "time/train_s": 3}
    whole = {"test/accuracy": 0.75, "time/train_s": 3, "annotation/coverage": None}
    assert run.update_metrics({"test/accuracy": 0.75, "annotation/coverage": None}) == whole
    run.update_metrics({"int8/size": 0.3, "int8/speedup": 1.2})
    assert run.update_metrics({"int8/size": 0.4}, stale=("int8/", "abstain/")) == whole | {"int8/size": 0.4}
    assert run.update_metrics({}, stale=("int8/",)) == whole
    assert run.read_metrics() == run.read_json(METRICS) == whole


def test_a_history_comes_back_as_it_was_written(run: RunFolder) -> None:
    assert run.read_history() == []
    history: list[dict[str, Any]] = [
        {"epoch": 0, "phase": "warmup", "loss/a": 0.1 + 0.2, "partial/a": -1.5e-7, "time/epoch_s": 2.0},
        {"epoch": 1, "phase": "coreg", "loss/a": 3.0, "clean/a": 1.0, "test/accuracy": 0.0, "note": 'ä, "b"\nc'},
        {"epoch": 10, "phase": "coreg", "loss/a": 1e300, "clean/a": 0.25, "churn/a": None},
    ]
    run.write_history(history)
    rows = run.read_history()
    assert rows == [*history[:2], {name: value for name, value in history[2].items() if value is not None}]
    kinds = [{name: type(value) for name, value in row.items()} for row in rows]
    assert all(kind["epoch"] is int for kind in kinds)
    assert all(kind["phase"] is str for kind in kinds)
    assert all(kind["loss/a"] is float for kind in kinds)
    assert "clean/a" not in rows[0]  # not zero, not empty: nothing was measured
    header, *lines = run.read(HISTORY).decode().split("\n")
    assert header.split(",") == [*COLUMNS, "churn/a", "note", "partial/a", "time/epoch_s"]
    assert lines[0].startswith("0,warmup,0.30000000000000004,,")


def test_a_history_is_replaced(run: RunFolder) -> None:
    run.write_history([{"epoch": 0, "phase": "coreg", "old": 1}, {"epoch": 1, "phase": "coreg"}])
    run.write_history([{"epoch": 0, "phase": "coreg"}])
    assert run.read_history() == [{"epoch": 0, "phase": "coreg"}]
    assert "old" not in run.read(HISTORY).decode()


MANIFEST_OF_TWO = CandidateManifest(
    class_names=["cat", "dog"],
    fingerprint="0123456789abcdef",
    quality=CandidateFigures(12, mean_candidates=1.5, votes_per_class=[5, 7], coverage=0.75, warnings=["few"]),
    prior=[0.25, 0.75],
    names=[["cat", "tabby"], ["dog"]],
    made_from="fedcba9876543210",
    parts=3,
)


def test_a_candidate_manifest_comes_back_as_it_was_written(run: RunFolder) -> None:
    assert run.read_candidate_manifest() is None
    run.candidates.write_json(MANIFEST, MANIFEST_OF_TWO.as_json())
    assert run.read_candidate_manifest() == MANIFEST_OF_TWO
    trial = beside(run, "trial")
    trial.link(candidates=run.candidates)
    assert trial.read_candidate_manifest() == MANIFEST_OF_TWO


def test_the_manifest_of_an_older_version_is_read(run: RunFolder) -> None:
    content = MANIFEST_OF_TWO.as_json()
    for name in ("parts", "made_from", "names"):
        del content[name]
    del content["quality"]["warnings"]
    content["quality"]["no longer known"] = 1
    run.candidates.write_json(MANIFEST, content | {"no longer known": 2})
    manifest = run.read_candidate_manifest()
    assert manifest is not None
    assert (manifest.parts, manifest.made_from, manifest.names) == (None, None, None)
    assert (manifest.class_names, manifest.fingerprint) == (["cat", "dog"], "0123456789abcdef")
    assert (manifest.quality.rows, manifest.quality.coverage, manifest.quality.warnings) == (12, 0.75, None)
    assert manifest.prior == [0.25, 0.75]


def test_whose_votes_count(run: RunFolder) -> None:
    assert run.read_used("pool") == []
    run.write_used("pool", (name for name in ("people", "clip-2")))
    assert [folder.path for folder in run.read_used("pool")] == [
        f"{run.path}/annotations/pool/{name}" for name in ("people", "clip-2")
    ]
    assert run.read_used("test") == []
    trial = beside(run, "trial")
    trial.link(annotations=run / "annotations")
    assert [folder.path for folder in trial.read_used("pool")] == [folder.path for folder in run.read_used("pool")]


def test_which_images_the_rows_hold(run: RunFolder) -> None:
    assert run.read_rows_manifest("pool") is None
    manifest = RowsManifest(side=32, images="0123456789abcdef")
    run.write_rows_manifest("pool", manifest)
    assert run.read_rows_manifest("pool") == manifest
    assert run.read_rows_manifest("test") is None


def test_baselines_belong_to_settings_and_annotations(run: RunFolder) -> None:
    baselines = [Baseline("zero-shot", 0.5, 1.5, "", 100), Baseline("supervised", None, None, "no labels")]
    assert run.read_baselines(["a", None]) is None
    run.write_baselines(["a", None], baselines)
    assert run.read_baselines(["a", None]) == baselines
    assert run.read_baselines(["a", "b"]) is None


def test_why_a_trial_failed(run: RunFolder) -> None:
    assert run.read_failure() is None
    run.write("failure.txt", "the loss is not finite")
    assert run.read_failure() == "the loss is not finite"


def test_links_of_older_versions_are_read(run: RunFolder) -> None:
    """The name of the file and what it says are fixed: trials of a search that goes on were linked by it."""
    run.write_json(LINKS, {"rows": "elsewhere/rows"})
    assert LINKS == "borrowed.json"
    assert run.rows("pool").path == "elsewhere/rows/pool"


# Searches.


def test_a_search_is_a_run_folder_with_one_for_each_trial(run: RunFolder) -> None:
    search = SearchFolder(run.filesystem, run.path)
    search.claim(config_of(run))
    trial = search.trial("trial_0001")
    assert (search.tune.path, search.trials.path) == (f"{run.path}/tune", f"{run.path}/trials")
    assert trial.path == f"{run.path}/trials/trial_0001"
    trial.link(annotations=search / "annotations")
    trial.update_metrics({"test/accuracy": 0.5})
    assert search.trials.entries() == ["trial_0001"]
    assert search.trial("trial_0001").read_metrics() == {"test/accuracy": 0.5}
    assert trial.annotations("pool").path == search.annotations("pool").path


def test_rows_of_another_side_lie_apart(run: RunFolder) -> None:
    search = SearchFolder(run.filesystem, run.path)
    assert search.rows_at(32, own=32).rows("pool").path == f"{run.path}/rows/pool"
    assert search.rows_at(64, own=32).rows("pool").path == f"{run.path}/data/side-64/rows/pool"
    assert search.rows_at(64, own=32).path == search.data("side-64").path
    assert search.data("mark").candidates.path == f"{run.path}/data/mark/candidates"
