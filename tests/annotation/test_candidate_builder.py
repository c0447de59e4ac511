"""From annotations to candidate sets and figures, against counting by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreg_ray.annotation.arrow import read_table
from coreg_ray.annotation.candidate_builder import Making, join, score, to_table
from coreg_ray.annotation.evidence import Evidence
from coreg_ray.annotation.labels import NO_CLASS, Labels
from coreg_ray.annotation.quality import Score, _pairs, warnings
from coreg_ray.config import CandidatesConfig
from coreg_ray.ids import row_numbers
from coreg_ray.pure.candidates import combine_votes
from coreg_ray.run.storage import Folder

NONE = Labels(np.zeros(0, np.int64), np.zeros(0, np.int64))
NAMES = ["a", "b", "c"]


def labels(values: dict[str, int]) -> Labels:
    rows = row_numbers(list(values))
    order = np.argsort(rows)
    return Labels(rows[order], np.array(list(values.values()))[order])


def evidence(votes: list[list[int]], similarity: list[float] | None = None) -> Evidence:
    given = torch.tensor(votes, dtype=torch.int32)
    mean = torch.stack([torch.bincount(row[row >= 0].long(), minlength=3).float() + 0.1 for row in given])
    known = torch.tensor(similarity) if similarity else torch.full((len(votes),), torch.nan)
    ids = [f"i{number}" for number in range(len(votes))]
    return Evidence(ids, given, mean / mean.sum(1, keepdim=True), known, torch.zeros(len(votes), dtype=torch.bool))


def making(output: Folder | None = None, **settings: Any) -> Making:
    truth, manual = settings.pop("labels", NONE), settings.pop("manual", NONE)
    return Making(CandidatesConfig(**settings), truth, manual, output, seed=0)


def written(folder: Folder) -> dict[str, Any]:
    table = [read_table(folder, name) for name in folder.entries()]
    return {row["image_id"]: row for part in table for row in part.to_pylist()}


VOTES = [[0, 0, 1], [2, 2, 2], [-1, -1, -1], [1, -1, 0]]


def test_candidate_sets_hold_votes_scores_and_trust(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    score(evidence(VOTES), making(folder, manual=labels({"i1": 0, "elsewhere": 1})), "x")
    rows = written(folder)
    assert rows["i0"]["candidates"] == [0, 1]
    assert rows["i0"]["votes"] == [2, 1]
    assert rows["i0"]["scores"] == pytest.approx([2.1 / 3.3, 1.1 / 3.3], abs=1e-3)
    assert (rows["i1"]["candidates"], rows["i1"]["trusted"], rows["i1"]["votes"]) == ([0], True, [0])
    assert rows["i2"]["candidates"] == [0, 1, 2]
    assert rows["i3"]["candidates"] == [0, 1]
    assert [rows[i]["trusted"] for i in ("i0", "i2", "i3")] == [False] * 3


@pytest.mark.parametrize("weighted", [False, True])
def test_candidates_weigh_as_many_votes_as_they_have(tmp_path: Path, weighted: bool) -> None:
    score(evidence(VOTES), making(Folder.at(tmp_path), weighted=weighted, manual=labels({"i3": 2})), "x")
    rows = written(Folder.at(tmp_path))
    assert [rows[f"i{number}"]["weights"] for number in range(4)] == [[1.0, 0.5], [1.0], [1.0, 1.0, 1.0], [1.0]]


def test_an_image_of_no_class_is_an_outlier_and_excluded(tmp_path: Path) -> None:
    told = {"i0": NO_CLASS, "i1": 0}
    totals = [score(evidence(VOTES), making(Folder.at(tmp_path), manual=labels(some)), "x") for some in ({}, told)]
    rows = written(Folder.at(tmp_path))
    assert [rows[f"i{number}"]["excluded"] for number in range(4)] == [True, False, False, False]
    assert [rows[f"i{number}"]["background"] for number in range(4)] == [True, False, False, False]
    assert (rows["i0"]["candidates"], rows["i0"]["trusted"]) == ([0, 1], False)
    assert totals[0].chosen != totals[1].chosen
    assert totals[0].chosen == score(evidence(VOTES), making(), "x").chosen


def test_candidates_of_the_mean_weigh_by_it(tmp_path: Path) -> None:
    total = [
        score(evidence(VOTES), making(Folder.at(tmp_path / str(weighted)), mode="top_k", k=3, weighted=weighted), "x")
        for weighted in (False, True)
    ]
    rows = written(Folder.at(tmp_path / "True"))
    assert rows["i0"]["weights"] == pytest.approx([1.0, 1.1 / 2.1, 0.1 / 2.1], abs=1e-3)
    assert rows["i2"]["weights"] == [1.0, 1.0, 1.0]
    plain = written(Folder.at(tmp_path / "False"))
    assert [plain[name]["weights"] for name in rows] == [row["weights"] for row in rows.values()]
    assert total[0].chosen != total[1].chosen  # training reads them, or it does not


@pytest.mark.parametrize(
    ("mode", "candidates"), [("single", [0]), ("top_k", [0, 1]), ("threshold", [0, 1]), ("ratio", [0])]
)
def test_other_modes_follow_the_mean(tmp_path: Path, mode: str, candidates: list[int]) -> None:
    score(evidence(VOTES), making(Folder.at(tmp_path), mode=mode, k=2, threshold=0.3, ratio=0.9), "x")
    assert written(Folder.at(tmp_path))["i0"]["candidates"] == candidates


def test_synthetic_sets_do_not_depend_on_the_part(tmp_path: Path) -> None:
    votes, similarity = [[0]] * 30, [0.5] * 30
    truth = labels({f"i{number}": number % 3 for number in range(30)})
    settings = {"mode": "synthetic", "partial_rate": 0.5, "noise_rate": 0.3, "labels": truth}
    whole = evidence(votes, similarity)
    score(whole, making(Folder.at(tmp_path / "whole"), **settings), "x")
    for start in (0, 15):
        part = slice(start, start + 15)
        piece = Evidence(
            whole.image_ids[part], whole.votes[part], whole.mean[part], whole.similarity[part], whole.background[part]
        )
        score(piece, making(Folder.at(tmp_path / "parts"), **settings), str(start))
    assert written(Folder.at(tmp_path / "whole")) == written(Folder.at(tmp_path / "parts"))
    kept = [
        number % 3 in row["candidates"]
        for number in range(30)
        for row in [written(Folder.at(tmp_path / "whole"))[f"i{number}"]]
    ]
    assert 0.4 < np.mean(kept) < 1
    with pytest.raises(ValueError, match="needs a label for every image"):
        score(evidence(votes), making(mode="synthetic"), "x")


def test_figures_add_up_over_parts_and_agree_with_counting() -> None:
    rng = np.random.default_rng(0)
    votes = rng.integers(-1, 3, (200, 4)).tolist()
    truth = labels({f"i{number}": int(rng.integers(3)) for number in range(150)})
    whole = evidence(votes)
    total = score(whole, making(labels=truth), "x")
    pieces = [
        score(
            Evidence(whole.image_ids[s], whole.votes[s], whole.mean[s], whole.similarity[s], whole.background[s]),
            making(labels=truth),
            "x",
        )
        for s in (slice(0, 80), slice(80, 200))
    ]
    figures = total.figures(NAMES)
    assert figures.class_coverage is not None
    sets = [set(row) - {-1} or {0, 1, 2} for row in votes]
    assert figures.mean_candidates == pytest.approx(np.mean([len(s) for s in sets]))
    true = truth.of(whole.rows).tolist()
    judged = [number for number in range(200) if true[number] >= 0]
    assert len(judged) == 150
    assert figures.coverage == pytest.approx(np.mean([true[n] in sets[n] for n in judged]))
    right = [whole.mean[n].argmax().item() == true[n] for n in judged]
    assert figures.zero_shot_accuracy == pytest.approx(np.mean(right))
    of_b = [n for n in judged if true[n] == 1]
    assert figures.class_coverage[1] == pytest.approx(np.mean([1 in sets[n] for n in of_b]))
    assert total.prior() == pytest.approx((whole.mean.sum(0) / 200).tolist(), rel=1e-5)
    added = (pieces[0] + pieces[1]).figures(NAMES)
    for name in (
        "coverage",
        "class_accuracy",
        "vote_entropy",
        "prompt_dissent",
        "mean_candidates",
        "agreement",
        "prompt_accuracy",
    ):
        assert getattr(added, name) == pytest.approx(getattr(figures, name))


def test_entropy_is_that_of_the_votes() -> None:
    figures = score(evidence([[0, 0, 1, 1], [2, 2, 2, 2]]), making(), "x").figures(NAMES)
    assert figures.vote_entropy == pytest.approx(np.log(2) / 2)


def told(votes: list[list[int]], similarity: list[float] | None = None) -> str:
    figures = score(evidence(votes, similarity), making(), "x").figures(NAMES)
    return "; ".join(warnings(figures, NAMES, [f"p{number}" for number in range(len(votes[0]))], [("b", "c")]))


def test_warnings_are_plain_and_only_where_due() -> None:
    assert told([[0, 0], [1, 1], [2, 2]] * 20) == "'b' and 'c' look like two names of one class"
    assert "'a' takes 90% of all votes" in told([[0, 0]] * 18 + [[1, 1], [2, 2]])
    assert "nobody votes for 1 of 3 classes ('c')" in told([[0, 0], [1, 1]])
    assert "'b' is swallowed by 'a'" in told([[0, 0]] * 5 + [[0, 1]] * 5 + [[2, 2]] * 9)
    assert "prompt 'p2' contradicts the others" in told([[0, 0, 1], [1, 1, 2], [2, 2, 0]] * 9)
    assert "got no vote at all" in told([[-1, -1], [0, 0], [1, 1], [2, 2]])
    assert "resemble no class" in told([[0], [1], [2]] * 40, [0.3, 0.31, 0.29] * 36 + [-0.2] * 12)
    assert "resemble no class" not in told([[0], [1], [2]] * 40, [0.3, 0.31, 0.29] * 40)


def test_several_annotators_stand_side_by_side() -> None:
    import pyarrow as pa

    one, other = evidence([[0, 0], [1, 1], [2, 2]]), evidence([[1], [-1], [2], [0]])
    both = join(pa.concat_tables([to_table(one, 0), to_table(other, 1)]), [2, 1])
    joined = dict(zip(both.image_ids, both.votes.tolist(), strict=True))
    assert joined == {"i0": [0, 0, 1], "i1": [1, 1, -1], "i2": [2, 2, 2], "i3": [-1, -1, 0]}
    mean = dict(zip(both.image_ids, both.mean, strict=True))
    torch.testing.assert_close(mean["i0"], (one.mean[0] + other.mean[0]) / 2, atol=1e-3, rtol=0)
    torch.testing.assert_close(mean["i3"], other.mean[3], atol=1e-3, rtol=0)
    torch.testing.assert_close(both.mean.sum(1), torch.ones(4), atol=2e-3, rtol=0)


def test_pairs_of_classes_are_counted_as_a_matrix_product_would() -> None:
    member = torch.rand(300, 40, generator=torch.Generator().manual_seed(0)) < 0.1
    halves = [_pairs(half) for half in (member[:10], member[10:])]
    product = member.double().T @ member.double()
    assert torch.equal((halves[0] + halves[1]).to_dense(), product.long())
    assert _pairs(member[:0]).to_dense().sum() == 0
    crowded = torch.ones(600, 60, dtype=torch.bool)  # 2,160,000 pairs: more than are counted at once
    assert torch.equal(_pairs(crowded).to_dense(), torch.full((60, 60), 600))
    large = torch.zeros(64, 20_000, dtype=torch.bool)
    large[:, ::5_000] = True
    assert _pairs(large)._nnz() == 16  # and no matrix of 20,000 x 20,000


def test_rows_that_tell_nothing_of_two_classes_cost_no_memory_and_hide_no_swallowing() -> None:
    votes = torch.full((400, 100), -1)
    votes[200:300] = torch.arange(100)  # 100 candidates
    votes[300:320] = torch.tensor([0, 1]).repeat(50)
    votes[320:400] = 0
    total = Score.of(votes, torch.ones(400, 300) / 300, combine_votes(votes, 300), *no_more(400))
    assert total.pairs.to_dense()[:3, :3].tolist() == [[100, 20, 0], [20, 20, 0], [0, 0, 0]]
    assert total.pairs.coalesce()._nnz() == 4
    swallowed = total.figures([str(number) for number in range(300)]).swallowed_classes
    assert swallowed == [{"class": "1", "by": "0", "share": 1.0, "twins": False}]


def no_more(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Similarity, background and truth of images of which nothing more is known."""
    return torch.full((rows,), torch.nan), torch.zeros(rows, dtype=torch.bool), torch.full((rows,), -1)


def test_figures_of_no_image_at_all() -> None:
    nothing = Score.none(2, 3)
    figures = nothing.figures(NAMES)
    assert json.loads(json.dumps(figures.as_json(), allow_nan=False)) == figures.as_json()
    assert (figures.rows, nothing.prior(), figures.votes_per_class) == (0, [0.0] * 3, [0] * 3)
    assert warnings(figures, NAMES, ["p", "q"], []) == [
        "no image has an answer; those that cannot be decoded are in rejects/"
    ]
    some = score(evidence(VOTES), making(), "x")
    both = Score.none(3, 3) + some
    assert (both.figures(NAMES), both.prior()) == (some.figures(NAMES), some.prior())
