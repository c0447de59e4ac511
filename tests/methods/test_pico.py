"""PiCO and ALIM: one step against the formulae, and the laws of docs/methods.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import frozen_toy
import pytest
import torch
import toy
from torch import Tensor
from torch.nn import functional as F

from coreg_ray.config import MethodConfig
from coreg_ray.methods import pico
from coreg_ray.pure import losses
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import frozen_copy, pack
from coreg_ray.training.plan import parted, whole_plan
from coreg_ray.training.rows import Rows, make_rows
from coreg_ray.training.state import State
from coreg_ray.training.steps import Batch, mixing_order, mixing_share, strong, weak

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> toy.Toy:
    return frozen_toy.frozen(toy.toy(count=80))


def scene(data: toy.Toy, rows: Rows | None = None, **settings: Any) -> tuple[State, Rows]:
    """A state with random prototypes and a queue that is half full."""
    problem = data if rows is None else replace(data, rows=rows)
    state, rows = toy.start(problem, Mesh(), student=frozen_toy.STUDENT, kind="pico", epochs=10, pico=settings)
    random = torch.Generator().manual_seed(4)
    for learner in state.learners:
        memory = learner.memory
        memory.prototypes = F.normalize(torch.randn(4, 8, generator=random), dim=1)
        memory.keys = frozen_copy(learner.student)
        older = F.normalize(torch.randn(30, 8, generator=random), dim=1)
        memory.queue.push(older, torch.arange(30) % 4, torch.ones(30, dtype=torch.bool))
    return state, rows


def first_batch(rows: Rows, state: State, epoch: int = 5, reliable: Tensor | None = None) -> tuple[Batch, list[Tensor]]:
    whole = whole_plan(rows, state.seed, 0, epoch, 32, Mesh(), "pico")
    plan = parted(whole, torch.ones(len(rows), dtype=torch.bool) if reliable is None else reliable, Mesh())
    return Batch(rows, plan, 0, epoch), whole_plan(rows, state.seed, 0, epoch, 32, Mesh(), "partner").labelled


def trust(rows: Rows, outside: float = 0.0) -> pico.Trust:
    return pico.Trust(outside * ~rows.trusted, torch.ones(len(rows), dtype=torch.bool), {})


def take(state: State, rows: Rows, outside: float = 0.0, epoch: int = 5) -> Tensor:
    batch, partners = first_batch(rows, state, epoch)
    return pico.step(state, state.learners[0], batch, Mesh(), trust(rows, outside), partners)


def sets_of(rows: Rows) -> Tensor:
    return rows.candidates(torch.arange(len(rows)), CPU)


def with_sets(rows: Rows, candidates: Tensor, trusted: Tensor | None = None) -> Rows:
    return make_rows(rows.numbers, rows.pixels, candidates, trusted, rows.features)


def dense_confidence(state: State, rows: Rows) -> Tensor:
    return pico.confidence_of(state.learners[0].memory, rows, torch.arange(len(rows)), CPU)


@torch.no_grad()
def outputs(state: State, batch: Batch, network: Any, make: Any, purpose: str) -> tuple[Tensor, Tensor]:
    index, learner = batch.labelled, state.learners[0]
    views = make(state, learner, batch, index, purpose, batch.rows.take(index, CPU))
    return network(views)


@pytest.mark.parametrize("epoch", [1, 5])
def test_a_step_of_pico_is_what_the_formulae_say(data: toy.Toy, epoch: int) -> None:
    """Before prototypes vote: uniform confidence, and each row against the queue alone."""
    state, rows = scene(data, start=0.2)
    memory, batch = state.learners[0].memory, first_batch(rows, state, epoch)[0]
    before = {"prototypes": memory.prototypes.clone(), "confidence": dense_confidence(state, rows)}
    logits, z = outputs(state, batch, state.learners[0].student, weak, "weak")
    _, k = outputs(state, batch, memory.keys, strong, "strong")  # follows an equal network: it is unmoved
    older, older_classes = memory.queue.keys[:30].clone(), memory.queue.classes[:30].clone()
    sets, index = sets_of(rows)[batch.labelled], batch.labelled
    terms = take(state, rows, epoch=epoch)

    sure = before["confidence"][index]
    if epoch == 5:
        phi = 0.95 + (0.8 - 0.95) * 5 / 10
        best = (z @ before["prototypes"].T).masked_fill(~sets, -9).argmax(1)
        sure = phi * sure + (1 - phi) * F.one_hot(best, 4)
    torch.testing.assert_close(dense_confidence(state, rows)[index], sure, atol=1e-3, rtol=0)
    assert float(terms[0]) == pytest.approx(float(-(sure * logits.log_softmax(1)).sum(1).mean()), abs=1e-5)
    assert terms[2] == 0

    classes = logits.masked_fill(~sets, -99).argmax(1)
    expected = 0.0
    for i in range(len(z)):
        entries = {("own key", i): k[i]} | {("queue", j): older[j] for j in range(30)}
        positive = [("own key", i)]
        if epoch == 5:
            entries |= {("query", j): z[j] for j in range(len(z)) if j != i}
            entries |= {("own key", j): k[j] for j in range(len(z))}
            of = {name: older_classes[name[1]] if name[0] == "queue" else classes[name[1]] for name in entries}
            positive = [name for name in entries if name == ("own key", i) or of[name] == classes[i]]
        scores = {name: float(z[i] @ entry) / 0.07 for name, entry in entries.items()}
        total = torch.tensor(list(scores.values())).logsumexp(0)
        expected += float(total) - sum(scores[name] for name in positive) / len(positive)
    assert float(terms[3]) == pytest.approx(0.5 * expected / len(z), rel=1e-4)

    moved = before["prototypes"]
    for row, of_class in zip(z, classes, strict=True):
        moved = moved.clone()
        moved[of_class] = 0.99 * moved[of_class] + 0.01 * row
    torch.testing.assert_close(memory.prototypes, F.normalize(moved, dim=1))
    assert memory.queue.classes[30 : 30 + len(z)].tolist() == classes.tolist()


def test_single_labels_are_cross_entropy_and_supervised_contrast(data: toy.Toy) -> None:
    labels = sets_of(data.rows).float().argmax(1)
    state, rows = scene(data, with_sets(data.rows, F.one_hot(labels, 4).bool()), start=0.0)
    batch, _ = first_batch(rows, state)
    logits, z = outputs(state, batch, state.learners[0].student, weak, "weak")
    _, k = outputs(state, batch, state.learners[0].memory.keys, strong, "strong")
    queue, given = state.learners[0].memory.queue, labels[batch.labelled]
    sure = torch.ones(len(z), dtype=torch.bool)
    contrast = losses.noise_tolerant_contrast(
        z, k, given, sure, queue.keys, queue.classes, queue.confident, queue.valid
    )
    terms = take(state, rows)
    assert float(terms[0]) == pytest.approx(float(F.cross_entropy(logits, given)), abs=1e-5)
    assert float(terms[3]) == pytest.approx(0.5 * float(contrast), abs=1e-5)
    assert bool((state.learners[0].memory.confidence == 1).all())


def test_a_momentum_of_one_keeps_all_candidates_equal(data: toy.Toy) -> None:
    state, rows = scene(data, start=0.0, momentum=1.0, final_momentum=1.0)
    before = state.learners[0].memory.confidence.clone()
    take(state, rows)
    assert torch.equal(state.learners[0].memory.confidence, before)


def test_alim_without_weight_and_mixtures_is_pico(data: toy.Toy) -> None:
    plain, rows = scene(data, start=0.0)
    other, _ = scene(data, start=0.0, importance="onehot", mixup_weight=0)
    assert torch.equal(take(plain, rows), take(other, rows))
    assert torch.equal(pack(plain.learners[0].student), pack(other.learners[0].student))
    one, two = plain.learners[0].memory, other.learners[0].memory
    assert torch.equal(one.confidence, two.confidence)
    assert torch.equal(one.prototypes, two.prototypes)


@pytest.mark.parametrize("importance", ["onehot", "scale"])
def test_at_a_weight_of_one_votes_do_not_ask_for_the_sets(data: toy.Toy, importance: str) -> None:
    """What is added to the confidences, and pseudo-classes, are those of any other sets."""
    votes, classes = [], []
    for candidates in (sets_of(data.rows), torch.ones(80, 4, dtype=torch.bool)):
        state, rows = scene(data, with_sets(data.rows, candidates), importance=importance)
        batch, _ = first_batch(rows, state)
        before = dense_confidence(state, rows)[batch.labelled]
        take(state, rows, outside=1.0)
        after = dense_confidence(state, rows)[batch.labelled]
        phi = 0.95 + (0.8 - 0.95) * 5 / 10
        votes.append((after - phi * before) / (1 - phi))
        classes.append(state.learners[0].memory.queue.classes[30 : 30 + len(before)])
    torch.testing.assert_close(*votes, atol=1e-2, rtol=0)  # kept in half precision
    torch.testing.assert_close(votes[0].sum(1), torch.ones(len(votes[0])), atol=1e-2, rtol=0)
    assert torch.equal(*classes)


def test_alims_mixtures_are_cross_entropy_with_mixed_confidences(data: toy.Toy) -> None:
    state, rows = scene(data, importance="scale", mixup_weight=3)
    batch, partners = first_batch(rows, state)
    student, index, partner = state.learners[0].student, batch.labelled, partners[0]
    of = state, state.learners[0], batch
    views = weak(*of, index, "weak", rows.take(index, CPU)).float()
    others = weak(*of, partner, "partner", rows.take(partner, CPU)).float()
    network = frozen_copy(student)
    terms = take(state, rows, outside=0.3)
    sure = dense_confidence(state, rows)

    def value(share: float) -> float:
        with torch.no_grad():
            logits, _ = network(share * views + (1 - share) * others)
        targets = share * sure[index] + (1 - share) * sure[partner]
        return float(-3 * (targets * logits.log_softmax(1)).sum(1).mean())

    shares = torch.linspace(0.5, 1, 2001).tolist()
    assert min(abs(value(share) - float(terms[2])) for share in shares) < 2e-3  # for some share of at least a half
    assert set(index.tolist()) != set(partner.tolist())


def test_the_weight_is_a_quantile_of_the_margins_at_the_estimated_noise(data: toy.Toy) -> None:
    state, rows = scene(data, importance="scale", importance_start=0.2)
    learner = state.learners[0]
    assert pico.trust_of(state, learner, rows, Mesh(), 5).figures["importance"] == 0  # no row was seen: no noise
    random = torch.Generator().manual_seed(5)
    wrong = torch.arange(80) < 24
    learner.memory.losses = torch.where(wrong, 6.0, 0.1).half() + 0.1 * torch.rand(80, generator=random).half()
    learner.memory.margins = torch.rand(80, generator=random).half()
    judged = pico.trust_of(state, learner, rows, Mesh(), 2)
    assert judged.figures["noise"] == pytest.approx(0.3, abs=0.01)
    ordered = learner.memory.margins.sort().values
    assert float(ordered[22]) <= judged.figures["importance"] <= float(ordered[25])
    assert judged.outside.tolist() == pytest.approx([judged.figures["importance"]] * 80)
    assert pico.trust_of(state, learner, rows, Mesh(), 1).figures["importance"] == 0  # it is too early
    learner.memory.margins.fill_(50)
    assert pico.trust_of(state, learner, rows, Mesh(), 2).figures["importance"] == 1
    learner.memory.losses.fill_(0.5)
    assert pico.trust_of(state, learner, rows, Mesh(), 2).figures["importance"] == 0


@pytest.mark.parametrize("settings", [{}, {"importance": "scale"}, {"importance": "onehot"}, {"plus": True}])
def test_manual_labels_stay_what_they_are(data: toy.Toy, settings: dict[str, Any]) -> None:
    candidates, trusted = sets_of(data.rows), torch.arange(80) % 3 == 0
    candidates[trusted] = F.one_hot(torch.arange(80) % 4, 4).bool()[trusted]
    state, rows = scene(data, with_sets(data.rows, candidates, trusted), start=0.0, **settings)
    for epoch in (3, 4, 5):
        for learner in state.learners:
            if learner.memory.losses is not None:
                learner.memory.losses = torch.where(torch.arange(80) % 2 == 0, 9.0, 0.1).half()  # so that some is noise
        turns = pico.turns(state, rows, Mesh(), epoch)
        turn = turns.of[0]
        for number in range(turn.plan.steps):
            turn.step(state, state.learners[0], Batch(rows, turn.plan, number, epoch), Mesh())
    if "importance" in settings:
        assert turns.figures["importance/a"] > 0
    if "plus" in settings:
        assert turns.figures["reliable/a"] < 1
    assert torch.equal(dense_confidence(state, rows)[trusted], candidates[trusted].float())
    assert not torch.equal(dense_confidence(state, rows)[~trusted], candidates[~trusted].float())


def test_alim_and_pico_plus_are_not_taken_together() -> None:
    with pytest.raises(ValueError, match=r"importance=scale \(ALIM\) and plus=true \(PiCO\+\).*choose one"):
        MethodConfig.model_validate({"kind": "pico", "pico": {"importance": "scale", "plus": True}})


def plus_scene(data: toy.Toy, reliable: Tensor, **settings: Any) -> tuple[State, Rows, Batch, pico.Trust]:
    state, rows = scene(data, plus=True, start=0.0, **settings)
    batch, _ = first_batch(rows, state, reliable=reliable)
    return state, rows, batch, pico.Trust((~reliable).float(), reliable, {})


@pytest.mark.parametrize("neighbours_start", [0.2, 1.0])
def test_a_step_of_pico_plus_is_what_the_formulae_say(data: toy.Toy, neighbours_start: float) -> None:
    settings: dict[str, Any] = {"neighbours": 4, "neighbours_start": neighbours_start}
    state, rows, batch, trusting = plus_scene(data, torch.arange(80) % 3 > 0, **settings)
    learner, memory = state.learners[0], state.learners[0].memory
    memory.queue.confident = torch.arange(64) % 2 == 0
    index, b = torch.cat([batch.labelled, batch.unlabelled]), len(batch.labelled)
    assert 0 < b < len(index)
    images = rows.take(index, CPU)
    views = weak(state, learner, batch, index, "weak", images)
    with torch.no_grad():
        logits, z = learner.student(views)
        _, k = memory.keys(strong(state, learner, batch, index, "strong", images))
        share, order = mixing_share(state, learner, batch), mixing_order(state, learner, batch, Mesh(), len(index))
        mixed_logits, _ = learner.student(share * views.float() + (1 - share) * views[order].float())
    queue = memory.queue
    older, older_classes, older_sure = (part[:30].clone() for part in (queue.keys, queue.classes, queue.confident))
    sets, likeness = sets_of(rows)[index], z @ memory.prototypes.T
    before, prototypes = dense_confidence(state, rows)[index], memory.prototypes.clone()
    terms = pico.step(state, learner, batch, Mesh(), trusting, [])

    phi = 0.95 + (0.8 - 0.95) * 5 / 10
    sure = phi * before + (1 - phi) * F.one_hot(likeness.masked_fill(~sets, -9).argmax(1), 4)
    torch.testing.assert_close(dense_confidence(state, rows)[index], sure, atol=1e-3, rtol=0)
    inside = logits.masked_fill(~sets, -99).argmax(1)
    torch.testing.assert_close(memory.distances[index].float(), -likeness[range(len(z)), inside], atol=1e-3, rtol=0)
    targets = torch.cat([sure[:b], (likeness[b:] / 0.07).softmax(1)])
    entropy = -(targets * logits.log_softmax(1)).sum(1)
    assert float(terms[0]) == pytest.approx(2 * float(entropy[:b].mean()), abs=1e-4)
    assert float(terms[1]) == pytest.approx(0.1 * float(entropy[b:].mean()), abs=1e-4)
    mixed = share * targets + (1 - share) * targets[order]
    assert float(terms[2]) == pytest.approx(float(-(mixed * mixed_logits.log_softmax(1)).sum(1).mean()), abs=1e-4)

    classes = torch.cat([inside[:b], logits[b:].argmax(1)])
    assert queue.classes[30 : 30 + len(z)].tolist() == classes.tolist()
    assert queue.confident[30 : 30 + len(z)].tolist() == [i < b for i in range(len(z))]
    total = 0.0
    for i in range(len(z)):
        entries = {("query", j): z[j] for j in range(len(z)) if j != i} | {("key", j): k[j] for j in range(len(z))}
        entries |= {("queue", j): older[j] for j in range(30)}
        scores = {name: float(z[i] @ entry) / 0.07 for name, entry in entries.items()}
        of = {name: older_classes[name[1]] if name[0] == "queue" else classes[name[1]] for name in entries}
        surely = {name: bool(older_sure[name[1]]) if name[0] == "queue" else name[1] < b for name in entries}
        alike = [name for name in entries if name == ("key", i) or of[name] == classes[i]]
        both = [name for name in alike if name == ("key", i) or (surely[name] and i < b)]
        weight = 1.0
        if neighbours_start < 0.5:
            weight = 0.5 if i < b else 0.1
            nearest = sorted(scores, key=scores.__getitem__, reverse=True)[:4]
            both = both if i < b else sorted({*nearest, ("key", i)})
        normaliser = float(torch.tensor(list(scores.values())).logsumexp(0))
        for positives, factor in ((alike, 0.1), (both, weight)):
            total += factor * (normaliser - sum(scores[name] for name in positives) / len(positives))
    assert float(terms[3]) == pytest.approx(total / len(z), rel=1e-4)

    moved = prototypes
    for row, of_class in zip(z[:b], classes[:b], strict=True):
        moved = moved.clone()
        moved[of_class] = 0.99 * moved[of_class] + 0.01 * row
    torch.testing.assert_close(memory.prototypes, F.normalize(moved, dim=1))


def test_with_all_rows_reliable_pico_plus_is_picos_losses_in_other_weights(data: toy.Toy) -> None:
    state, rows, batch, trusting = plus_scene(data, torch.ones(80, dtype=torch.bool), neighbours_start=1.0)
    plus = pico.step(state, state.learners[0], batch, Mesh(), trusting, [])
    plain, rows = scene(data, start=0.0)
    terms = take(plain, rows)
    assert float(plus[0]) == pytest.approx(2 * float(terms[0]), abs=1e-5)
    assert float(plus[1]) == 0
    assert float(plus[3]) == pytest.approx(1.1 / 0.5 * float(terms[3]), rel=1e-5)


def test_with_no_row_reliable_nothing_divides_by_none(data: toy.Toy) -> None:
    state, _, batch, trusting = plus_scene(data, torch.zeros(80, dtype=torch.bool), neighbours_start=0.0)
    before = state.learners[0].memory.prototypes.clone()
    terms = pico.step(state, state.learners[0], batch, Mesh(), trusting, [])
    assert terms.isfinite().all()
    assert terms[0] == 0
    assert torch.equal(state.learners[0].memory.prototypes, before)


def test_the_nearest_rows_are_reliable_as_many_as_the_mixture_finds_sound(data: toy.Toy) -> None:
    trusted = torch.arange(80) >= 60
    state, rows = scene(data, with_sets(data.rows, sets_of(data.rows), trusted), plus=True, start=0.2)
    learner, random = state.learners[0], torch.Generator().manual_seed(5)
    learner.memory.losses = torch.where(torch.arange(80) < 18, 6.0, 0.1).half()
    learner.memory.distances = torch.rand(80, generator=random).half()
    judged = pico.trust_of(state, learner, rows, Mesh(), 2)
    assert judged.figures["noise"] == pytest.approx(0.3, abs=0.01)
    ordered = learner.memory.distances[:60].sort().values
    kept = int((1 - judged.figures["noise"]) * 60)
    assert torch.equal(judged.reliable, trusted | (learner.memory.distances <= ordered[kept - 1]))
    assert judged.figures["reliable"] == pytest.approx((kept + 20) / 80, abs=0.03)
    assert bool(pico.trust_of(state, learner, rows, Mesh(), 1).reliable.all())  # before prototypes vote
