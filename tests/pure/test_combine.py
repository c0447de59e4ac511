"""Votes and networks as one label: against arithmetic by hand, and the laws that a naive Bayes obeys."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from coreg_ray.pure.combine import (
    BELIEVED_DOUBT,
    FEWEST_APART,
    agreeing_temperature,
    annotator_distribution,
    combine,
    confusions,
    doubted,
    heard,
    pool,
    settled,
)
from coreg_ray.pure.rng import generator

B, K = 7, 5


def distributions(*shape: int, seed: int = 0) -> Tensor:
    return (3 * torch.randn(*shape, generator=generator(seed))).softmax(dim=-1)


def sets(rows: list[dict[int, tuple[int, float]]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of {class: (votes, score)} as they are stored: indices, counts, votes, scores."""
    flat = [(number, *told) for row in rows for number, told in row.items()]
    indices, votes, scores = (torch.tensor([entry[place] for entry in flat]) for place in range(3))
    return indices, torch.tensor([len(row) for row in rows]), votes, scores


def by_hand(annotator: list[float], networks: list[list[float]], prior: list[float]) -> list[float]:
    """The product of the annotator's probability and the networks' geometric mean, over the prior, normalised."""
    means = [math.prod(network[k] for network in networks) ** (1 / len(networks)) for k in range(len(prior))]
    joint = [a * m / p for a, m, p in zip(annotator, means, prior, strict=True)]
    return [value / sum(joint) for value in joint]


def test_it_is_the_product_over_the_prior() -> None:
    annotator, networks, prior = distributions(B, K), distributions(2, B, K, seed=1), distributions(K, seed=2)
    expected = [by_hand(annotator[i].tolist(), networks[:, i].tolist(), prior.tolist()) for i in range(B)]
    torch.testing.assert_close(combine(annotator, networks.log(), prior), torch.tensor(expected))


def test_either_side_decides_alone_where_the_other_one_says_nothing() -> None:
    annotator, networks = distributions(B, K), distributions(2, B, K, seed=1)
    even = torch.full((B, K), 1 / K)
    torch.testing.assert_close(combine(even, networks.log()), pool(networks.log()).exp().float())
    torch.testing.assert_close(combine(annotator, even.log().expand(2, -1, -1)), annotator)
    prior = distributions(K, seed=2)
    torch.testing.assert_close(combine(annotator, prior.log().expand(2, B, -1), prior), annotator)


def test_the_networks_order_does_not_matter_and_one_twice_is_one() -> None:
    annotator, networks = distributions(B, K), distributions(2, B, K, seed=1).log()
    torch.testing.assert_close(combine(annotator, networks), combine(annotator, networks.flip(0)), rtol=0, atol=0)
    torch.testing.assert_close(combine(annotator, networks[:1]), combine(annotator, networks[:1].expand(2, -1, -1)))


def test_classes_named_otherwise_change_nothing_else() -> None:
    annotator, networks, prior = distributions(B, K), distributions(2, B, K, seed=1).log(), distributions(K, seed=2)
    order = torch.tensor([3, 0, 4, 1, 2])
    relabelled = combine(annotator[:, order], networks[:, :, order], prior[order])
    torch.testing.assert_close(relabelled, combine(annotator, networks, prior)[:, order])


def test_a_side_that_is_certain_decides_unless_the_other_one_excludes_its_class() -> None:
    certain = torch.eye(K)
    others = distributions(K, K, seed=3)
    torch.testing.assert_close(combine(certain, others.log().expand(2, -1, -1)), certain)
    torch.testing.assert_close(combine(others, certain.log().expand(2, -1, -1)), certain)
    contradicting = combine(certain, certain.roll(1, 0).log().expand(2, -1, -1))
    torch.testing.assert_close(contradicting, (certain + certain.roll(1, 0)) / 2)  # each counts half
    each_other = torch.stack([certain, certain.roll(1, 0)]).log()  # the two networks
    torch.testing.assert_close(pool(each_other).exp().float(), (certain + certain.roll(1, 0)) / 2)


def test_a_class_without_prior_is_excluded() -> None:
    prior = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    combined = combine(distributions(B, K), distributions(2, B, K, seed=1).log(), prior)
    assert combined[:, 2].eq(0).all()
    torch.testing.assert_close(combined.sum(dim=1), torch.ones(B))


def test_doubt_leaves_every_class_possible_and_none_leaves_all_as_it_is() -> None:
    certain = torch.eye(K)
    torch.testing.assert_close(doubted(certain, 0.0), certain)
    torch.testing.assert_close(doubted(certain, 1.0), torch.full((K, K), 1 / K))
    assert doubted(certain, 0.1).min() == pytest.approx(0.02)
    sure = torch.full((2, 1, K), 1e-4).index_fill(2, torch.tensor([1]), 1 - 4e-4).log()
    assert combine(doubted(certain[:1], 0.1), sure).argmax() == 1  # nobody has voted for it
    assert combine(doubted(certain[:1], 1e-6), sure).argmax() == 0


def test_the_annotator_speaks_by_votes_and_of_equal_ones_the_lowest_class_comes_first() -> None:
    rows = sets([{0: (1, 0.9), 3: (2, 0.1)}, {4: (3, 0.2), 1: (3, 0.7)}, {2: (7, 0.3)}])
    told = annotator_distribution(*rows, K)
    torch.testing.assert_close(told[0], torch.tensor([1 / 3, 0, 0, 2 / 3, 0]))
    assert told.argmax(dim=1).tolist() == [3, 1, 2]
    torch.testing.assert_close(told.sum(dim=1), torch.ones(3))


def test_a_label_model_speaks_by_its_posterior_and_what_is_missing_lies_outside_the_set() -> None:
    rows = sets([{0: (1, 0.6), 3: (2, 0.1)}, {1: (1, 1.0)}])
    told = annotator_distribution(*rows, K, by_scores=True)
    torch.testing.assert_close(told[0], torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1]))
    torch.testing.assert_close(told[1], torch.eye(K)[1])


def test_a_row_without_votes_goes_by_its_scores_and_one_without_either_is_even() -> None:
    rows = sets([{0: (0, 0.75), 3: (0, 0.25)}, {1: (0, 0.0), 2: (0, 0.0)}, dict.fromkeys(range(K), (0, 0.2)), {}])
    told = annotator_distribution(*rows, K)
    assert told[0].tolist() == [0.75, 0, 0, 0.25, 0]
    assert told[1].tolist() == [0, 0.5, 0.5, 0, 0]
    torch.testing.assert_close(told[2:], torch.full((2, K), 1 / K))


def test_the_temperature_is_found_at_which_networks_mean_what_they_say() -> None:
    """Answers are drawn from the networks' own distributions, whose logits are then scaled: by the temperature."""
    random = generator(5)
    logits = 2 * torch.randn(1, 4000, K, generator=random)
    truth = torch.multinomial(logits[0].softmax(dim=1), 1, generator=random)[:, 0]
    wrong = torch.rand(4000, generator=random) < 0.2
    answer = torch.where(wrong, torch.randint(K, (4000,), generator=random), truth)
    annotator = doubted(torch.eye(K)[answer], 0.2)
    for scale in (0.25, 1.0, 4.0):
        assert agreeing_temperature(annotator, scale * logits) == pytest.approx(scale, rel=0.2)
    assert agreeing_temperature(annotator, torch.randn(2, 4000, K, generator=random)) == 8  # nothing learned
    assert agreeing_temperature(annotator[:0], logits[:, :0]) == 1


def test_confusions_are_half_what_the_networks_see_and_half_what_is_assumed() -> None:
    networks = torch.eye(3)[[0, 0, 1, 1]]  # nobody is of the last class
    annotator = torch.eye(3)[[0, 1, 1, 1]]
    table = confusions(annotator, networks, doubt=0.3)
    expected = [[(0.5 + 0.8) / 2, (0.5 + 0.1) / 2, 0.05], [0.05, 0.9, 0.05], [0.1, 0.1, 0.8]]
    torch.testing.assert_close(table, torch.tensor(expected))


def test_an_answer_that_stands_for_two_classes_leaves_both_possible() -> None:
    annotator, networks = distributions(B, K), distributions(2, B, K, seed=1)
    assumed = doubted(torch.eye(K), 0.2)
    torch.testing.assert_close(heard(annotator, assumed), doubted(annotator, 0.2))  # as if nothing had been seen
    swallowed = assumed.clone()
    swallowed[3] = swallowed[4]  # images of class 3 are called 4 just as often
    told = heard(torch.eye(K)[4:], swallowed)
    assert told[0, 3] == told[0, 4]
    order = torch.tensor([3, 0, 4, 1, 2])
    table = confusions(annotator, networks[0], 0.1)
    torch.testing.assert_close(confusions(annotator[:, order], networks[0][:, order], 0.1), table[order][:, order])


def known_by_heart(apart: int) -> tuple[Tensor, Tensor, Tensor]:
    """A posterior, networks that repeat it but on the first images, where chance decides, and which these are."""
    classes = torch.randint(0, K, (300,), generator=generator(1))
    said = torch.where(torch.arange(300) < apart, torch.randint(0, K, (300,), generator=generator(2)), classes)
    annotator = doubted(torch.eye(K)[classes], 0.05)
    return annotator, 6 * torch.eye(K)[said].expand(2, -1, -1), torch.arange(300) < apart


def test_a_posterior_that_is_believed_is_taken_as_it_is_and_networks_as_they_are_elsewhere() -> None:
    annotator, logits, apart = known_by_heart(2 * FEWEST_APART)
    temperature, table = settled(annotator, logits, BELIEVED_DOUBT, True, apart)
    assert table is None
    assert temperature > 2 * agreeing_temperature(doubted(annotator[~apart], BELIEVED_DOUBT), logits[:, ~apart])
    both = combine(doubted(annotator, BELIEVED_DOUBT), (logits / temperature).log_softmax(dim=2))
    assert torch.equal(both.argmax(dim=1), annotator.argmax(dim=1))
    few = settled(annotator, logits, BELIEVED_DOUBT, True, apart & (torch.arange(300) < FEWEST_APART - 1))
    assert few == (agreeing_temperature(doubted(annotator, BELIEVED_DOUBT), logits), None)


def test_of_others_networks_tell_what_an_answer_means_unless_classes_are_too_many() -> None:
    annotator, logits, apart = known_by_heart(100)
    temperature, table = settled(annotator, logits, 0.1, False, apart)
    assert temperature == agreeing_temperature(doubted(annotator, 0.1), logits)
    assert table is not None
    networks = pool((logits / temperature).log_softmax(dim=2)).exp()
    assert torch.equal(table, confusions(annotator, networks, 0.1))
    assert settled(annotator, logits, 0.1, False, apart, confused=False) == (temperature, None)
    assert settled(annotator[:0], logits[:, :0], 0.1, False, apart[:0]) == (1.0, None)
