"""The label model against a slow one, and the laws it obeys."""

from __future__ import annotations

from functools import reduce

import label_model_oracle as oracle
import numpy as np
import pytest
import torch

from coreg_ray.pure.candidates import combine_votes
from coreg_ray.pure.label_fit import begin, fit
from coreg_ray.pure.label_model import block_sums, posterior, sets_by_mass
from coreg_ray.pure.voters import survey_votes, voters


def drawn(rows, accuracies, classes, seed=0, missing=0.0):
    """Votes of independent voters and the truth; a wrong vote is any other class."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, rows)
    votes = np.stack(
        [
            np.where(generator.random(rows) < a, truth, (truth + generator.integers(1, classes, rows)) % classes)
            for a in accuracies
        ],
        axis=1,
    )
    votes[generator.random(votes.shape) < missing] = -1
    return torch.as_tensor(votes), torch.as_tensor(truth)


def prototypes(rows=600, voters=12, classes=6, seed=1):
    """Voters who err together: each the nearest of its own poor class means in one common space."""
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(classes, 4)) * 1.1
    truth = generator.integers(0, classes, rows)
    points = means[truth] + generator.normal(size=(rows, 4))
    own = means + generator.normal(size=(voters, classes, 4)) * 0.8
    nearest = ((points[:, None, None] - own) ** 2).sum(3).argmin(2)
    return torch.as_tensor(nearest)


def fitted(votes, classes, block=97):
    blocks = votes.split(block)
    survey = reduce(lambda a, b: a.merge(b), (survey_votes(part, classes) for part in blocks))
    return fit(survey, lambda model: reduce(lambda a, b: a.merge(b), (block_sums(part, model) for part in blocks)))


def belief(votes, classes, **settings):
    return posterior(votes, fitted(votes, classes, **settings))


def accuracy(belief, truth):
    return float((belief.argmax(1) == truth).double().mean())


# --- against the oracle --------------------------------------------------------------------------------------------


CASES = {
    "ten classes": lambda: (drawn(150, [0.8, 0.6, 0.5, 0.3], 10, seed=1)[0], 10),
    "two classes": lambda: (drawn(80, [0.9, 0.7, 0.6], 2, seed=2)[0], 2),
    "missing": lambda: (drawn(150, [0.8, 0.7, 0.6, 0.5, 0.4], 5, seed=3, missing=0.5)[0], 5),
    "few rows a class": lambda: (drawn(60, [0.8, 0.7, 0.6], 20, seed=4)[0], 20),
    "a copy": lambda: (drawn(100, [0.8, 0.7, 0.6, 0.6], 4, seed=5)[0][:, [0, 1, 2, 3, 3]], 4),
    "two voters": lambda: (drawn(50, [0.8, 0.6], 4, seed=6)[0], 4),
    "erring together": lambda: (prototypes(200), 6),
}


@pytest.mark.parametrize("case", CASES)
def test_the_model_agrees_with_the_slow_one(case):
    votes, classes = CASES[case]()
    model, rows = fitted(votes, classes), votes.tolist()
    slow = oracle.fit(rows, classes, compact=model.table.ndim == 2)
    assert model.trusted == slow["trusted"]
    assert np.allclose(model.prior, slow["prior"], atol=1e-9)
    assert np.allclose(model.accuracy, slow["accuracy"], atol=1e-9)
    if model.table.ndim == 3:
        assert np.allclose(model.table, slow["table"], atol=1e-9)
    assert np.allclose(posterior(votes, model), [oracle.posterior(row, slow) for row in rows], atol=1e-9)


# --- laws ----------------------------------------------------------------------------------------------------------


def test_other_names_for_the_classes_change_nothing_else():
    votes, _ = drawn(400, [0.8, 0.7, 0.6, 0.3], 5, missing=0.2)
    renamed = torch.tensor([3, 0, 4, 1, 2])
    there = belief(torch.where(votes >= 0, renamed[votes.clamp_min(0)], -1), 5)
    assert torch.allclose(there[:, renamed], belief(votes, 5), atol=1e-9)


def test_the_order_of_voters_and_of_rows_does_not_matter():
    votes, _ = drawn(400, [0.8, 0.7, 0.6, 0.3], 5, missing=0.2)
    here = belief(votes, 5)
    assert torch.allclose(belief(votes[:, [2, 0, 3, 1]], 5), here, atol=1e-9)
    assert torch.allclose(belief(votes.flip(0), 5).flip(0), here, atol=1e-9)


@pytest.mark.parametrize("classes", [4, 60])
def test_blocks_add_up_to_all_rows_at_once(classes):
    votes, _ = drawn(250, [0.8, 0.7, 0.6, 0.3], classes, missing=0.2)
    assert torch.allclose(belief(votes, classes, block=7), belief(votes, classes, block=1000), atol=1e-9)
    assert torch.equal(belief(votes, classes), belief(votes, classes))


@pytest.mark.parametrize("copies", [1, 4])
def test_copies_of_a_voter_add_no_confidence(copies):
    votes, _ = drawn(400, [0.8, 0.7, 0.6, 0.5], 5)
    with_copies = torch.cat([votes, *[votes[:, 3:]] * copies], dim=1)
    assert torch.allclose(belief(with_copies, 5), belief(votes, 5), atol=1e-9)


def test_a_voter_who_never_votes_is_not_there():
    votes, _ = drawn(400, [0.8, 0.7, 0.6], 5)
    silent = torch.cat([votes, torch.full((400, 1), -1)], dim=1)
    assert torch.allclose(belief(silent, 5), belief(votes, 5), atol=1e-9)


def test_rows_without_vote_count_for_nothing():
    votes, _ = drawn(300, [0.8, 0.7, 0.6], 5)
    longer = torch.cat([votes, torch.full((100, 3), -1)])
    model = fitted(longer, 5)
    there = posterior(longer, model)
    assert torch.allclose(there[:300], belief(votes, 5), atol=1e-9)
    assert torch.allclose(there[300:], model.prior.expand(100, -1))
    assert sets_by_mass(there, longer)[300:].all()


@pytest.mark.parametrize("number", [1, 2])
def test_one_voter_or_two_are_left_as_they_are(number):
    votes, _ = drawn(200, [0.8, 0.6][:number], 4)
    model = fitted(votes, 4)
    assert not model.trusted
    assert "can tell nothing and leaves the votes as they are" in model.reason
    there = posterior(votes, model)
    assert torch.equal(sets_by_mass(there, votes), combine_votes(votes, 4))
    assert torch.equal(there.argmax(1), votes.amin(1))  # of two that differ the lower class


def test_all_who_agree_are_believed_and_told_nothing_about():
    votes = torch.arange(60)[:, None].remainder(3).expand(-1, 5)
    model = fitted(votes, 3)
    assert not model.trusted
    assert torch.equal(posterior(votes, model), torch.eye(3, dtype=torch.float64)[votes[:, 0]])


@pytest.mark.parametrize("classes", [2, 100, 700])
@pytest.mark.parametrize("missing", [0.0, 0.9])
def test_everything_stays_finite(classes, missing):
    votes, _ = drawn(500, [1.0, 0.9, 0.0, 1 / classes, 0.5], classes, missing=missing)
    model = fitted(votes, classes)
    assert (model.table > 0).all()
    assert torch.isfinite(model.table.log()).all()
    there = posterior(votes, model)
    assert torch.allclose(there.sum(1), torch.ones(500, dtype=torch.float64))
    sets = sets_by_mass(there, votes)
    assert sets.any(1).all()
    assert not (sets & ~combine_votes(votes, classes)).any()
    assert sets.gather(1, there.argmax(1)[:, None])[(votes >= 0).any(1)].all()


def test_an_empty_pool_is_a_pool():
    votes = torch.empty(0, 3, dtype=torch.int64)
    survey = survey_votes(votes, 4)
    model = fit(survey, lambda model: block_sums(votes, model))
    assert torch.isfinite(model.table).all()
    assert posterior(votes, model).shape == (0, 4)


def test_more_dependence_is_less_sure():
    votes, _ = drawn(300, [0.8, 0.7, 0.6, 0.5], 5)
    model = fitted(votes, 5)
    sure = [float(posterior(votes, model, dependence).amax(1).mean()) for dependence in (0.0, 0.3, 0.6, 1.0)]
    assert sure == sorted(sure, reverse=True)
    assert sure[0] > sure[-1] + 0.1


# --- what it is for ------------------------------------------------------------------------------------------------


def test_one_good_voter_among_many_bad_ones_is_listened_to():
    votes, truth = drawn(800, [0.9, *[0.25] * 8], 8, seed=3)
    most = torch.nn.functional.one_hot(votes).sum(1)
    assert accuracy(belief(votes, 8), truth) > accuracy(most, truth) + 0.1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_rare_class_is_not_flooded(seed):
    generator = np.random.default_rng(seed)
    truth = torch.as_tensor(generator.choice(5, 1500, p=[0.6, 0.25, 0.09, 0.04, 0.02]))
    wrong = torch.as_tensor(generator.integers(1, 5, (1500, 5)))
    right = torch.as_tensor(generator.random((1500, 5))) < torch.tensor([0.8, 0.7, 0.65, 0.6, 0.6])
    votes = torch.where(right, truth[:, None], (truth[:, None] + wrong) % 5)
    most = torch.nn.functional.one_hot(votes).sum(1)
    assert accuracy(belief(votes, 5), truth) >= accuracy(most, truth) - 0.002


def test_voters_who_err_together_are_not_believed_against_the_most_votes():
    votes = prototypes()
    model = fitted(votes, 6)
    assert not model.trusted
    assert "unexplained" in model.reason
    most = torch.nn.functional.one_hot(votes).sum(1)
    there = posterior(votes, model)
    assert torch.equal(there.argmax(1), most.argmax(1))
    assert sets_by_mass(there, votes).sum() < combine_votes(votes, 6).sum()


def test_voters_are_told_apart():
    votes, truth = drawn(900, [0.9, 0.7, 0.5, 0.02], 6, seed=1)
    votes = torch.cat([votes, votes[:, 1:2], torch.full((900, 1), 2), torch.full((900, 1), -1)], dim=1)
    names = ["good", "fair", "poor", "wrong", "again", "stubborn", "silent"]
    model = fitted(votes, 6)
    lines = dict(zip(names, voters(survey_votes(votes, 6), model, names), strict=True))
    assert sum(line.weight for line in lines.values()) == pytest.approx(1)
    assert lines["fair"].weight == pytest.approx(lines["again"].weight)  # half each of the one voter that they are
    assert lines["good"].weight > 2 * lines["fair"].weight > lines["poor"].weight > lines["stubborn"].weight
    assert lines["good"].note == ""
    assert "worse than chance" in lines["wrong"].note
    assert "a copy of fair" in lines["again"].note
    assert "sure of one class" in lines["stubborn"].note
    assert lines["silent"].note == "has not voted"
    assert (lines["silent"].accuracy, lines["silent"].weight, lines["silent"].votes) == (None, 0, 0)
    for voter, name in enumerate(names[:4]):
        right = float((votes[:, voter] == truth).double().mean())
        assert lines[name].accuracy == pytest.approx(right, abs=0.05)


def test_of_one_voter_it_is_noted_that_nothing_can_be_told():
    votes, _ = drawn(50, [0.8], 4)
    (line,) = voters(survey_votes(votes, 4), fitted(votes, 4), ["me"])
    assert "can tell nothing and leaves the votes as they are" in line.note
    assert line.weight == 1


# --- what is refused -----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    votes, _ = drawn(60, [0.8, 0.7, 0.6], 4)
    survey, model = survey_votes(votes, 4), fitted(votes, 4)
    for wrong in (votes[:, :2], votes + 1, votes - 2):
        with pytest.raises(ValueError, match=r"votes (has shape|run over)"):
            posterior(wrong, model)
        with pytest.raises(ValueError, match=r"votes (has shape|run over)"):
            block_sums(wrong, begin(survey))
    with pytest.raises(ValueError, match=r"dependence=1\.5"):
        posterior(votes, model, 1.5)
    with pytest.raises(ValueError, match="2 names for 3 voters"):
        voters(survey, model, ["a", "b"])
    with pytest.raises(ValueError, match="cannot be added"):
        survey.merge(survey_votes(votes, 5))
    with pytest.raises(ValueError, match="1 class"):
        survey_votes(votes * 0, 1)
