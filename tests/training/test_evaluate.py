"""Scoring both networks on test images and on held-out ones, by any number of processes."""

from __future__ import annotations

import math

import pytest
import torch
import toy
from torch import Tensor

from coreg_ray.pure.label_free import VIEWS
from coreg_ray.pure.rng import stream, uniform
from coreg_ray.pure.views.augment import WEAK_DRAWS, weak
from coreg_ray.training.evaluate import Scored, evaluate
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import frozen_copy
from coreg_ray.training.rows import Images, make_rows
from coreg_ray.training.state import State

DATA = toy.toy(40)
CPU = torch.device("cpu")
assert DATA.scored.test is not None
assert DATA.scored.test.labels is not None
assert DATA.scored.held_out is not None
TEST, LABELS, HELD_OUT = DATA.scored.test, DATA.scored.test.labels, DATA.scored.held_out


def state_of(mesh: Mesh | None = None) -> State:
    state, _ = toy.start(DATA, mesh or Mesh())
    for index in torch.arange(200).split(50):  # a little life for the batch-norm statistics
        for learner in state.learners:
            learner.student(TEST.take(index, CPU))
    for learner in state.learners:
        learner.peer = frozen_copy(state.learners[1 - learner.network].student)
    return state


def logits(state: State, images: Images) -> list[Tensor]:
    with torch.no_grad():
        students = [learner.student.eval() for learner in state.learners]
        return [student.classify(images.pixels.permute(0, 3, 1, 2)) for student in students]


class One(Mesh):
    """A process among several, whose sums are its own."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__()
        self.rank, self.world = rank, world
        self.counts = torch.zeros(30)

    def world_sum(self, tensor: Tensor) -> Tensor:
        self.counts = tensor
        return tensor


def test_accuracies_and_agreement_are_what_their_names_say() -> None:
    state = state_of()
    metrics = evaluate(state, DATA.scored, Mesh())
    a, b = logits(state, TEST)
    for name, values in (("", a + b), ("_a", a), ("_b", b)):
        assert metrics[f"test/accuracy{name}"] == float((values.argmax(1) == LABELS).double().mean())
    a, b = logits(state, HELD_OUT)
    assert metrics["criterion/label_free"] == float((a.argmax(1) == b.argmax(1)).double().mean())


def test_images_that_are_trained_on_add_to_all_criteria_but_the_agreement() -> None:
    state = state_of()
    candidates = torch.rand(len(HELD_OUT), 4, generator=torch.Generator().manual_seed(0)) < 0.5
    whole = make_rows(HELD_OUT.numbers, HELD_OUT.pixels, candidates)
    half = len(whole) // 2
    one, other = (
        make_rows(whole.numbers[part], whole.pixels[part], whole.candidates(torch.arange(len(whole))[part], CPU))
        for part in (slice(half), slice(half, None))
    )
    together, apart = evaluate(state, Scored(whole), Mesh()), evaluate(state, Scored(one), Mesh())
    with_shown = evaluate(state, Scored(one, shown=other), Mesh())
    assert with_shown.pop("criterion/label_free") == apart["criterion/label_free"]
    together.pop("criterion/label_free")
    assert with_shown == together
    assert with_shown["criterion/combined"] != apart["criterion/combined"]
    assert evaluate(state, Scored(shown=other), Mesh()) == {}


def test_criteria_compare_predictions_on_views_with_each_other_and_with_the_candidates() -> None:
    state = state_of()
    candidates = torch.rand(len(HELD_OUT), 4, generator=torch.Generator().manual_seed(0)) < 0.5
    rows = make_rows(HELD_OUT.numbers, HELD_OUT.pixels, candidates)
    metrics = evaluate(state, Scored(held_out=rows), Mesh())
    plain = HELD_OUT.pixels.permute(0, 3, 1, 2)
    shown = [plain]
    for view in range(1, 1 + VIEWS):
        shown.append(weak(plain, uniform(stream(0, "stability", view), HELD_OUT.numbers, WEAK_DRAWS), flip=state.flip))
    stable, inside, predicted = [], [], [0] * 4
    students = [learner.student.eval() for learner in state.learners]
    with torch.no_grad():
        first = [student.classify(plain).argmax(1).tolist() for student in students]
        for view, images in enumerate(shown):
            predictions = [student.classify(images).argmax(1).tolist() for student in students]
            for row, pair in enumerate(zip(*predictions, strict=True)):
                inside += [bool(candidates[row, k]) for k in pair]
                for k in pair:
                    predicted[k] += 1
                stable += [k == first[network][row] for network, k in enumerate(pair)] if view else []
    assert metrics["criterion/stability"] == pytest.approx(sum(stable) / len(stable), abs=1e-12)
    assert metrics["criterion/candidates"] == pytest.approx(sum(inside) / len(inside), abs=1e-12)
    held = candidates.sum(0).tolist()
    alike = sum(math.sqrt(p * h) for p, h in zip(predicted, held, strict=True)) / math.sqrt(sum(predicted) * sum(held))
    assert metrics["criterion/classes"] == pytest.approx(alike, abs=1e-12)
    assert metrics["criterion/combined"] == pytest.approx(alike * sum(stable) / len(stable), abs=1e-12)
    assert 0 < sum(stable) < len(stable)
    assert alike < 1


def test_training_goes_on_unchanged() -> None:
    state = state_of()
    before = {name: tensor.clone() for name, tensor in state.learners[0].student.state_dict().items()}
    evaluate(state, DATA.scored, Mesh())
    student = state.learners[0].student
    assert student.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_what_is_not_there_is_not_scored() -> None:
    state = state_of()
    assert evaluate(state, Scored(), Mesh()) == {}
    without_candidates = evaluate(state, Scored(held_out=HELD_OUT), Mesh())
    assert set(without_candidates) == {"criterion/label_free", "criterion/stability"}
    assert set(evaluate(state, Scored(test=TEST), Mesh())) == {"test/accuracy", "test/accuracy_a", "test/accuracy_b"}
    unlabelled = Images(TEST.numbers, TEST.pixels)
    empty = Images(TEST.numbers[:0], TEST.pixels[:0])
    assert evaluate(state, Scored(held_out=empty, test=unlabelled), Mesh()) == {}


def test_images_of_unknown_class_do_not_count() -> None:
    state = state_of()
    labels = LABELS.clone()
    labels[::3] = -1
    some = evaluate(state, Scored(test=Images(TEST.numbers, TEST.pixels, labels)), Mesh())
    known = labels >= 0
    alone = evaluate(state, Scored(test=Images(TEST.numbers[known], TEST.pixels[known], labels[known])), Mesh())
    assert some == alone


def test_processes_share_the_images_and_their_counts_add_up() -> None:
    state = state_of()
    whole = One(0, 1)
    evaluate(state, DATA.scored, whole)
    assert whole.counts[3] == len(TEST)
    parts = [One(rank, 3) for rank in range(3)]
    for part in parts:
        evaluate(state, DATA.scored, part)
    assert torch.equal(torch.stack([part.counts for part in parts]).sum(0), whole.counts)


def test_more_processes_than_images() -> None:
    state = state_of()
    few = Scored(test=Images(TEST.numbers[:2], TEST.pixels[:2], LABELS[:2]))
    assert evaluate(state, few, One(3, 4)) == {}
    assert "test/accuracy" in evaluate(state, few, One(1, 4))
