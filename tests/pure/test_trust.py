"""Whether networks and votes together are to be trusted above the votes: what the verdict counts, where it turns."""

from __future__ import annotations

import pytest
import torch

from coreg_ray.pure.trust import ALIKE, FEWEST, LEARNED, LOST, SURER, TIED, Evidence, weigh
from coreg_ray.run.trust import trust_figures, trust_in_words

K = 4


def sample(rows: int, agree: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Annotators sure of class 0 in a little more than half and unsure else; networks agree on the first `agree`."""
    annotator = torch.full((rows, K), 0.1)
    annotator[: rows // 2 + 1] = torch.tensor([0.97, 0.01, 0.01, 0.01])
    annotator[rows // 2 + 1 :] = torch.tensor([0.4, 0.3, 0.2, 0.1])
    said = torch.where(torch.arange(rows) < agree, 0, 1)
    return annotator, torch.eye(K)[said].expand(2, -1, -1)


def test_agreement_is_about_the_surest_half_of_what_was_held_out() -> None:
    annotator, logits = sample(80, agree=30)
    apart = torch.arange(80) % 2 == 0
    evidence = weigh(annotator, logits, apart, believed=True, doubt=0.1)
    assert (evidence.images, evidence.agreement) == (21, 15 / 21)
    assert (evidence.sureness, evidence.tied) == (pytest.approx(0.97), 0.0)
    assert weigh(annotator, logits, torch.arange(80) < FEWEST - 1, True, 0.1).agreement is None
    assert weigh(annotator[:0], logits[:, :0], apart[:0], True, None) == Evidence(True, None, None, 0)


def test_images_without_one_likeliest_class_are_counted() -> None:
    annotator, logits = sample(80, agree=80)
    annotator[60:] = torch.tensor([0.4, 0.4, 0.2, 0.0])
    assert weigh(annotator, logits, torch.ones(80, dtype=torch.bool), False, None).tied == 0.25
    assert weigh(annotator[:, :1], logits[:, :, :1], torch.ones(80, dtype=torch.bool), False, None).tied == 0.0


def test_networks_that_have_learned_something_know_better_where_votes_tie_or_are_hardly_sure() -> None:
    assert Evidence(False, 0.39, LEARNED, 50, tied=TIED).improved
    assert not Evidence(False, LOST, LEARNED, 50, tied=TIED).improved
    assert not Evidence(True, LOST, 1.0, 50).improved
    assert not Evidence(False, 0.39, LEARNED, 50, tied=TIED - 0.01).improved
    assert not Evidence(False, 0.39, LEARNED - 0.01, 50, tied=TIED).improved
    assert Evidence(True, 0.3, 0.6 * LEARNED, 50, sureness=0.6).improved
    assert not Evidence(True, 0.3, 0.6 * LEARNED, 50, sureness=0.7).improved


def test_a_label_model_that_is_righter_than_it_dares_to_say_is_not_overruled() -> None:
    assert not Evidence(True, 0.35, 0.79, 50, sureness=0.46).improved
    assert Evidence(True, 0.35, SURER * 0.46, 50, sureness=0.46).improved
    assert Evidence(False, 0.1, 0.9, 50, sureness=0.46).improved  # shares of votes claim nothing


def test_networks_need_to_know_less_where_a_label_model_is_believed() -> None:
    assert Evidence(True, None, LEARNED, 50).improved
    assert not Evidence(True, 0.0, LEARNED - 0.01, 50).improved
    (least, most), (more, further) = ALIKE
    assert least < more
    assert most < further
    assert Evidence(False, most, least, 50).improved
    assert not Evidence(False, most + 0.01, least, 50).improved
    assert not Evidence(False, most, least - 0.01, 50).improved
    assert Evidence(False, further, more, 50).improved
    assert not Evidence(False, further + 0.01, 1.0, 50).improved
    assert not Evidence(False, None, 1.0, 50).improved
    assert not Evidence(True, 0.0, None, 3).improved


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (Evidence(True, 0.27, 0.6, 50), "are probably more right than the votes alone: on held-out images the networks "
         "agree with the label model, which is believed, for 60% of the surest."),
        (Evidence(False, 0.3, 0.5, 50), "are not to be trusted above the votes alone: on held-out images the networks "
         "agree with the votes for 50% of the surest and find 30% of the candidate sets unsound."),
        (Evidence(False, 0.3, 0.5, 50, tied=0.31), "are probably more right than the votes alone: on held-out images "
         "the networks agree with the votes for 50% of the surest, and for 31% of all images no class has the most "
         "votes."),
        (Evidence(True, 0.45, 0.91, 50), "the networks agree with the label model, which is believed, for 91% of the "
         "surest and find 45% of the candidate sets unsound."),
        (Evidence(False, 0.45, 0.5, 50, tied=0.31), "of the surest and find 45% of the candidate sets unsound."),
        (Evidence(False, None, 0.9, 50), "and were never asked which candidate sets are unsound."),
        (Evidence(True, 0.35, 0.79, 50, sureness=0.46), "are not to be trusted above the votes alone: on held-out "
         "images the networks agree with the label model, which is believed, for 79% of the surest, where it claims "
         "to be right for 46% only."),
        (Evidence(True, None, None, 3), "cannot be told, since too few images were held out"),
    ],
)  # fmt: skip
def test_the_verdict_is_a_sentence_with_what_it_rests_on(evidence: Evidence, words: str) -> None:
    assert words in trust_in_words(trust_figures(evidence))


def test_without_networks_there_is_no_verdict() -> None:
    assert trust_figures(None) == {}
    assert trust_in_words({"purified/images": 3}) == ""
