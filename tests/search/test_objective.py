"""Objectives and rank correlation; what a search is compared by, and how its trials are ranked and shown."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from coreg_ray.config import Config
from coreg_ray.errors import UserError
from coreg_ray.run.search_folder import SearchFolder
from coreg_ray.run.storage import Folder
from coreg_ray.search.definition import Search, claim_search, is_restorable, refuse_foreign
from coreg_ray.search.figure import trials_svg
from coreg_ray.search.objective import DEFAULT, WITHOUT_LABELS, check_objective, spearman, spearman_interval
from coreg_ray.search.space import Dimension, Space
from coreg_ray.search.trials import Trial, as_csv, as_table, ranked
from coreg_ray.studies import objectives
from coreg_ray.studies.halving import replay, rungs

CONFIG = Config(test={"kind": "digits"})
SPACE = Space((Dimension("method.learning_rate", "loguniform", (0.01, 0.1)), Dimension("seed", "randint", (0, 3))))


def test_rank_correlation_is_scipys() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        one, other = random.integers(6, size=(2, 30))  # with many ties
        assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_the_interval_holds_the_correlation_and_narrows_with_more_trials() -> None:
    random = np.random.default_rng(1)
    truth = random.normal(size=400)
    seen = truth + random.normal(size=400)
    narrow, wide = (spearman_interval(seen[:n].tolist(), truth[:n].tolist()) for n in (400, 20))
    assert narrow[0] < spearman(seen.tolist(), truth.tolist()) < narrow[1]
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_an_objective_needs_what_it_looks_at() -> None:
    check_objective(DEFAULT, CONFIG)
    check_objective("test/accuracy", CONFIG)
    with pytest.raises(UserError, match=r"accuracy is unknown; valid ones: criterion/combined, .*test/accuracy"):
        check_objective("accuracy", CONFIG)
    with pytest.raises(UserError, match=r"test/accuracy needs labelled images.*--test.kind"):
        check_objective("test/accuracy", Config(source={"kind": "digits"}))
    with pytest.raises(UserError, match=r"source.holdout=0 leaves none"):
        check_objective(DEFAULT, Config(source={"holdout": 0}))


@pytest.mark.parametrize(
    ("search", "space", "message"),
    [
        (Search(search="optuna"), Space((Dimension("seed", "grid", (1, 2)),)), "search=optuna takes no grid"),
        (Search(scheduler="pbt", search="optuna"), SPACE, "use --search random"),
        (Search(scheduler="pbt"), SPACE, r"scheduler=pbt changes values while trials run, which seed cannot"),
        (
            Search(),
            Space((Dimension("student.frozen", "grid", (True, False)),)),
            "student.frozen cannot be searched over: features of a frozen backbone depend on it",
        ),
        (Search(mlflow="sqlite:///x"), SPACE, r'--mlflow needs the package mlflow; pip install "coreg-ray\[mlflow\]"'),
        (Search(wandb="birds"), SPACE, r'--wandb needs the package wandb; pip install "coreg-ray\[wandb\]"'),
    ],
)
def test_what_cannot_work_together_is_refused(
    search: Search, space: Space, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "coreg_ray.search.definition.find_spec", lambda name: None if name in ("mlflow", "wandb") else name
    )
    with pytest.raises(UserError, match=message):
        search.check(CONFIG, space)


def test_a_search_folder_belongs_to_one_search(tmp_path: Path) -> None:
    output = SearchFolder.at(tmp_path / "search")
    config = CONFIG.model_copy(update={"output": str(tmp_path / "search")})
    with pytest.raises(UserError, match="holds no search; leave --resume out"):
        claim_search(Search(resume=True), config, SPACE, output)
    claim_search(Search(), config, SPACE, output)
    claim_search(Search(num_samples=5), config, SPACE, output)  # nothing has begun, so anything may change
    claim_search(Search(), config, SPACE, output)
    output.write("tune/tuner.pkl", "")
    with pytest.raises(UserError, match="holds this very search; add --resume"):
        claim_search(Search(), config, SPACE, output)
    claim_search(Search(resume=True), config, SPACE, output)
    today = config.cluster.model_copy(update={"resources_per_worker": {"CPU": 8}})
    larger = config.model_copy(update={"cluster": today})
    claim_search(Search(resume=True), larger, SPACE, output)  # what a trial takes is of today
    with pytest.raises(UserError, match=r"another search \(max_concurrent None -> 1\)"):  # Tune would keep the old one
        claim_search(Search(resume=True, max_concurrent=1), config, SPACE, output)
    with pytest.raises(UserError, match=r"another search \(num_samples 6 -> 9\); choose another --output"):
        claim_search(Search(resume=True, num_samples=9), config, SPACE, output)
    with pytest.raises(UserError, match=r"another search \(seed 0 -> 4\)"):
        claim_search(Search(resume=True), config.model_copy(update={"seed": 4}), SPACE, output)
    with pytest.raises(UserError, match=r"another search \(space "):
        claim_search(Search(resume=True), config, Space(SPACE.dimensions[:1]), output)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.tex\) and no search; choose an empty folder"):
        claim_search(Search(), config, SPACE, SearchFolder.at(tmp_path / "full"))


def test_a_search_that_an_older_version_began_goes_on_as_it_was(tmp_path: Path) -> None:
    output = SearchFolder.at(tmp_path)
    config = Config(output=str(tmp_path), test={"kind": "digits"}, method={"weak_views": 2})
    claim_search(Search(), config, SPACE, output)
    record = output.read_json("search.json")
    del record["config"]["method"]["weak_views"]
    output.write_json("search.json", record)
    output.write("tune/tuner.pkl", "")
    with pytest.raises(UserError, match=r"another search \(method\.weak_views 2 -> 1\)"):
        claim_search(Search(resume=True), CONFIG, SPACE, output)
    claim_search(Search(resume=True), config, SPACE, output)


def test_a_state_that_a_kill_has_cut_is_no_end_of_a_search(tmp_path: Path) -> None:
    trials = Folder.at(tmp_path / "tune")
    assert not is_restorable(trials)
    trials.write("tuner.pkl", b"")
    assert not is_restorable(trials)  # killed before Tune wrote a state
    assert not trials.exists()
    trials.write("tuner.pkl", b"")
    trials.write("experiment_state-2026-01-01_00-00-00.json", "{}")
    trials.write("experiment_state-2026-01-02_00-00-00.json", '{"trial_data": [')
    assert is_restorable(trials)
    assert trials.entries() == ["experiment_state-2026-01-01_00-00-00.json", "tuner.pkl"]


def trial(name: str, status: str, scores: list[float], rate: float = 0.02, error: str = "") -> Trial:
    history = [{"epoch": i, DEFAULT: s, "test/accuracy": s / 2, "time/epoch_s": 1.5} for i, s in enumerate(scores)]
    return Trial(name, name, status, {"method.learning_rate": rate, "seed": 1}, history, error)


TRIALS = [
    trial("a", "stopped early", [0.99]),
    trial("b", "finished", [0.5, 0.8]),
    trial("c", "failed", [], error="the label loss is not finite"),
    trial("d", "finished", [0.5, 0.9], rate=0.05),
]


def test_finished_trials_come_first_and_failed_ones_last() -> None:
    assert [each.name for each in ranked(TRIALS, DEFAULT)] == ["d", "b", "a", "c"]


def test_trials_are_ranked_by_the_mean_of_their_last_three_epochs() -> None:
    lucky, steady = trial("lucky", "finished", [0.9, 0.7, 0.7, 0.88]), trial("steady", "finished", [0.1, 0.8, 0.8, 0.8])
    assert [each.name for each in ranked([lucky, steady], DEFAULT)] == ["steady", "lucky"]
    assert lucky.score(DEFAULT) == pytest.approx(0.76)
    assert trial("lost", "finished", [0.9, math.nan]).score(DEFAULT) == -math.inf
    assert trial("none", "failed", []).score(DEFAULT) == -math.inf


def test_a_search_of_another_user_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = SearchFolder.at(tmp_path)
    output.tune.write("deep/trainable.pkl", b"")
    refuse_foreign(output)
    refuse_foreign(SearchFolder.at(tmp_path / "none"))
    owners = {tmp_path / "tune/deep/trainable.pkl": os.geteuid() + 1}
    as_it_is = Path.lstat

    def lstat(path: Path) -> Any:
        return SimpleNamespace(st_uid=owners.get(path, as_it_is(path).st_uid))

    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(UserError, match=r"would unpickle \S*trainable\.pkl, which belongs to the user \d+ and not"):
        refuse_foreign(output)
    with pytest.raises(UserError, match="would unpickle"):
        claim_search(Search(resume=True), Config(), SPACE, output)
    claim_search(Search(), Config(), SPACE, SearchFolder.at(tmp_path / "new"))


def test_no_cell_of_the_table_is_a_formula() -> None:
    broken = Trial("=x", "", "failed", {"method.learning_rate": -0.5, "seed": "-1"}, [], "=HYPERLINK(A1)")
    row = next(csv.DictReader(io.StringIO(as_csv([broken], SPACE, DEFAULT))))
    assert (row["trial"], row["error"]) == ("'=x", "'=HYPERLINK(A1)")
    assert (row["method.learning_rate"], row["seed"]) == ("-0.5", "-1")


def test_the_table_holds_values_scores_and_reasons() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(TRIALS, SPACE, DEFAULT))))
    assert [row["trial"] for row in rows] == ["d", "b", "a", "c"]
    assert rows[0]["method.learning_rate"] == "0.05"
    assert (float(rows[0]["objective"]), float(rows[0][DEFAULT])) == (0.7, 0.9)  # of its last epochs, of the last
    assert rows[0]["time/trial_s"] == "3.0"
    assert rows[3]["error"] == "the label loss is not finite"
    shown = as_table(TRIALS, SPACE, DEFAULT).splitlines()
    assert shown[0].split() == ["trial", "status", "epochs", "learning_rate", "seed", DEFAULT, "test/accuracy"]
    assert shown[1].split() == ["d", "finished", "2", "0.05", "1", "0.7", "0.45"]


def test_the_picture_has_a_panel_for_every_value() -> None:
    svg = trials_svg(TRIALS, SPACE, DEFAULT)
    assert svg.count("method.learning_rate") >= 1
    assert DEFAULT in svg
    assert trials_svg(TRIALS, SPACE, DEFAULT) == svg


def test_a_replay_of_asha_stops_the_trials_that_ray_tune_stops() -> None:
    from ray.tune.schedulers.async_hyperband import _Bracket

    class Known:
        def __init__(self, number: int) -> None:
            self.trial_id = str(number)

    random = np.random.default_rng(2)
    for _ in range(5):
        scores = random.normal(size=(16, 14)).cumsum(axis=1)
        replayed = replay(scores.tolist(), grace=3, reduction=4, at_once=1)
        bracket: Any = _Bracket(3, 14, 4, 0)
        for number, history in enumerate(scores):
            epochs = 0
            for epochs, score in enumerate(history, 1):
                if bracket.on_result(Known(number), epochs, score) == "STOP":
                    break
            assert replayed.epochs[number] == epochs
    assert rungs(14, 3, 4) == [3, 12]


def test_a_replay_spends_little_on_trials_that_are_worse_from_the_start() -> None:
    scores = [[level + epoch / 100 for epoch in range(12)] for level in (0.5, 0.1, 0.2, 0.3, 0.9, 0.4)]
    replayed = replay(scores, grace=3)
    assert replayed.epochs == [12, 3, 3, 3, 12, 3]
    assert replayed.winner == 4


@pytest.mark.slow
def test_the_study_trains_varied_trials_and_ranks_the_criteria(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [objectives.settings("wide", number) for number in range(4)]
    assert len({settings["learning_rate"] for settings in drawn}) == 4
    short = {"epochs": 2, "warmup_epochs": 1, "batch_size": 64, "warmup_batch_size": 64, "queue_size": 64}
    monkeypatch.setattr(objectives, "settings", lambda regime, number: {**short, "learning_rate": 0.02 + number / 50})
    monkeypatch.setitem(objectives.SIDES, "wide", 8)
    trained = list(objectives.run_trials("synthetic", "wide", range(3), done={1}))
    assert [each["trial"] for each in trained] == [0, 2]
    lines = objectives.correlations(trained)
    assert len(lines) == 1 + len(WITHOUT_LABELS)
    assert lines[0].startswith("2 trials")
    stopped = objectives.early_stopping(trained)
    assert stopped[0].startswith("2 trials a search, reduction 3")
    assert len(stopped) == 6
