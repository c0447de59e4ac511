"""One training of one variant, and what it is worth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.config import StudentConfig
from coreg_ray.config.fit_to_pool import resolved
from coreg_ray.config.method import MethodSettings
from coreg_ray.deploy.purified import DOUBT, LEAST_DOUBT, MOST_DOUBT
from coreg_ray.methods import KINDS
from coreg_ray.pure import combine
from coreg_ray.pure.candidates import to_ragged
from coreg_ray.pure.trust import Evidence, weigh
from coreg_ray.studies.real_noise.problem import Problem
from coreg_ray.studies.real_noise.variants import Variant
from coreg_ray.studies.variants import Variant as Unusual
from coreg_ray.training.evaluate import SETTLED, Scored
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.rows import Images
from coreg_ray.training.soundness import clean_of
from coreg_ray.training.state import State, build_state
from coreg_ray.training.views import plain

_AT_ONCE = 256  # images in a pass
_ASKED = 1024  # images that settle temperature and confusions, as in a run
_FOLLOWED = 1000  # test images that are looked at after every epoch


@dataclass(frozen=True)
class Outcome:
    """Both networks after training, on the pool.

    Attributes:
        logits: (2, N, K). evidence: whether purified labels are to be trusted above the votes' own.
        purified: (N, K) distributions of networks and votes together. doubted: the same as if no label model was
            believed.
        tested: accuracy on all test images. curve: on some, after each epoch. criteria: told without labels, by the
            names of `history.csv`: means of the last epochs, as a search compares its trials.
    """

    logits: Tensor
    evidence: Evidence
    purified: Tensor
    doubted: Tensor
    tested: float
    curve: list[float]
    criteria: dict[str, float]


def run(problem: Problem, variant: Variant, student: StudentConfig, seed: int, epochs: int) -> tuple[Outcome, int]:
    """Train one variant; returns its outcome and how many epochs it took in all."""
    outcome = _train(problem, variant, student, seed, epochs)
    if not variant.last:
        return outcome, epochs
    fixed = replace(variant, kind="distil", sets="model", settings={}, weighted=False, soft="fixed", last=False)
    last = _train(problem, fixed, student, seed + 1000, epochs, outcome.purified)
    by_votes = _outcome(problem, "label_model", last.logits, outcome.evidence.doubt)
    return replace(by_votes, tested=last.tested, curve=outcome.curve + last.curve, criteria=last.criteria), 2 * epochs


def scores(problem: Problem, outcome: Outcome) -> dict[str, float]:
    """Accuracies, by the names of the study's lines."""
    own = combine.pool(outcome.logits.log_softmax(dim=2))

    def right(labels: Tensor) -> float:
        return float((labels == problem.labels).double().mean())

    return {
        "test_accuracy": outcome.tested,
        "votes_accuracy": right(problem.model_labels),
        "majority_accuracy": right(problem.shares.argmax(dim=1)),
        "pool_accuracy": right(own.argmax(dim=1)),
        "purified_accuracy": right(outcome.purified.argmax(dim=1)),
        "doubted_accuracy": right(outcome.doubted.argmax(dim=1)),
    }


def evidence_figures(evidence: Evidence) -> dict[str, float | bool | None]:
    """What is told without labels, by the names of the study's lines."""
    doubt, agreement = (None if v is None else round(v, 4) for v in (evidence.doubt, evidence.agreement))
    return {
        "votes_improved": evidence.improved, "believed": evidence.believed, "doubt": doubt, "agreement": agreement,
        "sureness": round(evidence.sureness, 4), "tied": round(evidence.tied, 4),
    }  # fmt: skip


def _train(
    problem: Problem, variant: Variant, student: StudentConfig, seed: int, epochs: int, fixed: Tensor | None = None
) -> Outcome:
    soft = {"": None, "votes": problem.shares, "belief": problem.belief, "fixed": fixed}[variant.soft]
    if variant.calm:
        problem, student = _calm(problem), student.model_copy(update={"views": "weak", "dropout": 0.0})
    rows = problem.rows(variant.sets, variant.weighted, soft)
    out = problem.held_out[torch.argsort(problem.images.numbers)]
    trained = rows.select((~out).nonzero()[:, 0])
    settings = MethodSettings.model_validate({"kind": variant.kind, "epochs": epochs, **variant.settings})
    method, module = resolved(settings, len(rows), student.frozen), KINDS[variant.kind]
    if variant.unaligned:
        module = Unusual(aligned="false")
    names = [str(number) for number in range(problem.classes)]
    state = build_state(method, student, seed, names, trained, Mesh(), module.remember)
    followed = _first(problem.test, _FOLLOWED)
    scored = Scored(rows.select(out.nonzero()[:, 0]), followed, compared=False)
    history = [epoch.metrics for epoch in fit(state, trained, scored, Mesh(), module)]
    logits = _logits(state, problem.images)
    assert problem.test.labels is not None
    shown = _logits(state, problem.test).sum(dim=0).argmax(dim=1)
    tested = float((shown == problem.test.labels).double().mean())
    known = "union" if variant.sets in ("union", "majority") else "label_model"
    return replace(
        _outcome(problem, known, logits, _doubt(state)),
        tested=tested,
        curve=[float(figures[metrics.ACCURACY]) for figures in history],
        criteria=_criteria(history[-SETTLED:]),
    )


def _criteria(epochs: list[dict[str, float | str]]) -> dict[str, float]:
    """The mean of each criterion over some epochs."""
    names = [name for name in epochs[-1] if name.startswith(metrics.CRITERION)]
    return {name: sum(float(figures[name]) for figures in epochs) / len(epochs) for name in names}


def _outcome(problem: Problem, kind: str, logits: Tensor, doubt: float | None) -> Outcome:
    """Networks beside what is known by the candidate sets of a `kind`; what training came to is left open."""
    evidence = weigh(
        _annotator(problem, kind), logits, problem.held_out, problem.believed and kind == "label_model", doubt
    )
    clamped = DOUBT if doubt is None else min(max(doubt, LEAST_DOUBT), MOST_DOUBT)
    purified, doubted = (_purified(problem, kind, logits, clamped, believed) for believed in (True, False))
    return Outcome(logits, evidence, purified, doubted, 0.0, [], {})


def _calm(problem: Problem) -> Problem:
    """Weak views in the place of strong ones, where views are stored; of pixels `student.views` makes none else."""
    images = problem.images
    if images.features is None:
        return problem
    weak = images.features.shape[1] // 2
    seen = torch.cat([images.features[:, : weak + 1], images.features[:, 1 : weak + 1]], dim=1)
    return replace(problem, images=Images(images.numbers, images.pixels, images.labels, seen))


def _first(images: Images, most: int) -> Images:
    assert images.labels is not None
    features = None if images.features is None else images.features[:most]
    return Images(images.numbers[:most], images.pixels[:most], images.labels[:most], features)


@torch.no_grad()
def _logits(state: State, images: Images) -> Tensor:
    """(2, N, K) float32 of images as they are."""
    networks, device = [learner.student.eval() for learner in state.learners], torch.device("cpu")
    blocks = [plain(images.take(index, device)) for index in torch.arange(len(images)).split(_AT_ONCE)]
    return torch.stack([torch.cat([net.classify(block) for block in blocks]) for net in networks])


def _doubt(state: State) -> float | None:
    """As `training.soundness` reads it from a checkpoint: None where no network was asked."""
    clean = []
    for learner in state.learners:
        losses = getattr(learner.memory, "losses", None)  # which some kinds have for some of their settings
        if losses is None:
            continue
        probability = clean_of(losses)
        if len(known := probability[~probability.isnan()]):
            clean.append(float(known.mean()))
    return 1 - sum(clean) / len(clean) if clean else None


def _annotator(problem: Problem, kind: str) -> Tensor:
    """What the votes say, (N, K), by the candidate sets of a kind as they are stored."""
    member, values = problem.sets(kind)
    indices, counts = to_ragged(member)
    none, told = torch.zeros(len(indices)), values[member]
    return combine.annotator_distribution(indices, counts, none, told, problem.classes, by_scores=True)


def _purified(problem: Problem, kind: str, logits: Tensor, doubt: float, believed: bool = True) -> Tensor:
    """Networks and votes together, (N, K), as `deploy.purified` makes them.

    Args:
        kind: of the candidate sets. believed: whether a label model may be believed.
    """
    annotator = _annotator(problem, kind)
    believed = believed and problem.believed and kind == "label_model"
    doubt = min(doubt, combine.BELIEVED_DOUBT) if believed else doubt
    asked = torch.arange(min(_ASKED, len(annotator)))
    temperature, table = combine.settled(
        annotator[asked], logits[:, asked], doubt, believed, problem.held_out[asked], doubt < MOST_DOUBT
    )
    answer = combine.doubted(annotator, doubt) if table is None else combine.heard(annotator, table)
    return combine.combine(answer, (logits / temperature).log_softmax(dim=2))
