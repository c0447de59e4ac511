"""One step of one network: which terms it has, what it changes, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from coreg_ray.methods.coreg import TERMS, coreg_step, pseudo_labels
from coreg_ray.pure import purify
from coreg_ray.training.assess import Opinion, assess
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.networks import frozen_copy, pack
from coreg_ray.training.plan import Plan, split_plan
from coreg_ray.training.rows import Rows
from coreg_ray.training.state import State
from coreg_ray.training.steps import Batch, predict, warmup_step

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def scene(
    epoch: int = 2, clean: float = 0.75, device: torch.device | str = "cpu", **settings: Any
) -> tuple[State, Rows, Opinion, Batch]:
    """A fresh state, an opinion that finds `clean` of the rows sound, and the first batch of an epoch."""
    data, mesh = toy.toy(count=40), Mesh(device)
    state, rows = toy.start(data, mesh, **({"batch_size": 8, "warmup_epochs": 1} | settings))
    rows.pixels = rows.pixels.to(mesh.device)
    labels = assess(state, state.learners[1], rows, mesh, epoch).soft_labels
    sound = (torch.arange(len(rows)) < clean * len(rows)).float() * 0.9
    plan = split_plan(rows, sound, 0.5, 0.25, 0, 0, epoch, 8, Mesh())
    return state, rows, Opinion(sound, labels), Batch(rows, plan, 0, epoch)


def named(terms: Tensor) -> dict[str, float]:
    return dict(zip(TERMS, terms.tolist(), strict=True))


def test_warm_up_has_two_terms_and_leaves_the_projection_alone() -> None:
    state, rows, _, batch = scene()
    learner = state.learners[0]
    before = {name: tensor.clone() for name, tensor in learner.student.state_dict().items()}
    terms = named(warmup_step(state, learner, batch, Mesh(), terms=len(TERMS)))
    assert terms["partial"] > 0 > terms["entropy"]
    assert not any(terms[name] for name in TERMS[2:])
    changed = {name for name, tensor in learner.student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("encoder") for name in changed)
    assert any(name.startswith("classifier") for name in changed)
    assert not any(name.startswith(("projector", "pixel")) for name in changed)
    assert all(parameter.grad is None for parameter in learner.student.parameters())
    assert len(rows) == 40


@pytest.mark.parametrize(("epoch", "branch"), [(1, False), (2, False), (3, True)])
def test_prototypes_and_contrast_join_after_the_delay(epoch: int, branch: bool) -> None:
    state, _, opinion, batch = scene(epoch, contrast_delay=1, warmup_epochs=1)
    learner = state.learners[0]
    terms = named(coreg_step(state, learner, batch, Mesh(), opinion))
    assert (terms["prototype"] > 0) == branch
    assert (terms["contrast"] > 0) == branch
    assert (learner.memory.keys is not None) == branch
    assert int(learner.memory.queue.valid.sum()) == (16 if branch else 0)
    assert learner.memory.prototypes.any()  # from the first epoch after warm-up
    assert learner.student.training
    assert terms["partial"] == terms["entropy"] == 0


@pytest.mark.parametrize(("clean", "sizes"), [(1.0, (8, 0)), (0.1, (4, 8))])
def test_one_sided_batches(clean: float, sizes: tuple[int, int]) -> None:
    state, _, opinion, batch = scene(clean=clean)
    assert (len(batch.labelled), len(batch.unlabelled)) == sizes
    terms = coreg_step(state, state.learners[0], batch, Mesh(), opinion)
    assert terms.isfinite().all()
    assert (named(terms)["consistency"] > 0) == (sizes[1] > 0)


def test_a_replica_without_rows_changes_nothing_but_keeps_pace() -> None:
    state, rows, opinion, _ = scene()
    learner = state.learners[0]
    empty = torch.zeros(0, dtype=torch.int64)
    before = pack(learner.student)
    terms = coreg_step(state, learner, Batch(rows, Plan([empty], [empty], [4], [4], 4), 0, 2), Mesh(), opinion)
    assert not terms.any()
    assert torch.equal(pack(learner.student), before)


def test_the_ramp_follows_the_steps() -> None:
    spread = []
    for epoch, step in ((1, 0), (1, 2), (2, 0), (3, 0)):
        state, rows, opinion, batch = scene(epoch, warmup_epochs=1, ramp_epochs=2, contrast_delay=9)
        at = Plan([batch.labelled] * 4, [batch.unlabelled] * 4, [8] * 4, [8] * 4, 8)
        spread.append(named(coreg_step(state, state.learners[0], Batch(rows, at, step, epoch), Mesh(), opinion)))
    amounts = [terms["consistency"] for terms in spread]
    assert amounts[0] == 0
    assert 0 < amounts[1] < amounts[3]
    assert amounts[1] == pytest.approx(amounts[3] / 4, rel=0.9)


def test_targets_of_labelled_rows_follow_the_other_network_as_far_as_it_is_sure() -> None:
    state, rows, opinion, batch = scene()
    images = rows.take(torch.cat([batch.labelled, batch.unlabelled]), torch.device("cpu"))
    sure = Opinion(torch.ones_like(opinion.clean), opinion.soft_labels)
    targets, features = pseudo_labels(state, state.learners[0], batch, sure, images)
    b = len(batch.labelled)
    others = rows.scatter(batch.labelled, opinion.soft_labels, torch.device("cpu")).float()
    torch.testing.assert_close(targets[:b], purify.sharpen(others, state.method.temperature))
    assert not (targets[:b][~rows.candidates(batch.labelled, torch.device("cpu"))]).any()
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(b))
    doubtful = Opinion(torch.zeros_like(opinion.clean), opinion.soft_labels)
    own, _ = pseudo_labels(state, state.learners[0], batch, doubtful, images)
    assert not torch.allclose(own[:b], targets[:b])
    assert torch.equal(own[b:], targets[b:])  # the unlabelled side drops its candidate sets


def test_targets_of_unlabelled_rows_are_both_networks_mean() -> None:
    state, rows, opinion, batch = scene()
    learner = state.learners[0]
    images = rows.take(torch.cat([batch.labelled, batch.unlabelled]), torch.device("cpu"))
    b = len(batch.labelled)
    both, _ = pseudo_labels(state, learner, batch, opinion, images)
    learner.peer = frozen_copy(learner.student)
    alone, _ = pseudo_labels(state, learner, batch, opinion, images)
    assert torch.equal(both[:b], alone[:b])  # the peer speaks on the labelled side by its opinion only
    assert not torch.allclose(both[b:], alone[b:])


def test_pseudo_labels_change_no_statistics() -> None:
    state, rows, opinion, batch = scene()
    learner = state.learners[0]
    before = (pack(learner.student), pack(learner.peer))
    pseudo_labels(
        state, learner, batch, opinion, rows.take(torch.cat([batch.labelled, batch.unlabelled]), torch.device("cpu"))
    )
    assert torch.equal(pack(learner.student), before[0])
    assert torch.equal(pack(learner.peer), before[1])


def test_the_key_encoder_follows_with_its_buffers() -> None:
    state, _, opinion, batch = scene(3, contrast_delay=0, key_momentum=0.9)
    learner = state.learners[0]
    before = pack(learner.student)
    coreg_step(state, learner, batch, Mesh(), opinion)
    assert learner.memory.keys is not None
    torch.testing.assert_close(
        pack(learner.memory.keys), 0.9 * before + 0.1 * pack(learner.student), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("count", [1, 2])
def test_the_number_of_weak_views_a_network_is_a_setting(count: int) -> None:
    state, rows, opinion, batch = scene(weak_views=count)
    learner = state.learners[0]
    seen: list[int] = []
    for network in (learner.student, learner.peer):
        network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    images = rows.take(torch.cat([batch.labelled, batch.unlabelled]), torch.device("cpu"))
    targets, features = pseudo_labels(state, learner, batch, opinion, images)
    b, u = len(batch.labelled), len(batch.unlabelled)
    assert seen == [count * (b + u), count * u]
    assert len(features) == b
    torch.testing.assert_close(targets.sum(1), torch.ones(b + u))
    other = scene(weak_views=3 - count)[0]
    assert not torch.equal(targets, pseudo_labels(other, other.learners[0], batch, opinion, images)[0])
    learner.peer = frozen_copy(learner.student)
    alone, _ = pseudo_labels(state, learner, batch, opinion, images)
    assert not torch.equal(alone[b:], targets[b:])  # the peer has its say
    assert torch.equal(alone[:b], targets[:b])


class Waits(TorchDispatchMode):
    """Names the operations that would make the host wait for a device, were these tensors on one."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        indices = [i for i in args[1] if i is not None] if name in ("index", "index_put", "index_put_") else []
        masked = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        if masked or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"):
            self.operations.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_no_step_waits_for_the_device(warm: bool, device: str) -> None:
    state, _, opinion, batch = scene(3, contrast_delay=1, device=device)
    learner, mesh = state.learners[0], Mesh(device)

    def step() -> Tensor:
        if warm:
            return warmup_step(state, learner, batch, mesh, terms=len(TERMS))
        return coreg_step(state, learner, batch, mesh, opinion)

    step()  # the first one makes the key encoder
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with Waits() as waits:
            terms = step()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert waits.operations == []
    assert terms.isfinite().all()
    assert warm or named(terms)["contrast"] > 0


def test_waiting_is_noticed() -> None:
    numbers = torch.arange(4)
    with Waits() as waits:
        numbers[numbers > 1].sum().item()
        numbers[numbers.flip(0)] += 1
    assert waits.operations == ["index", "_local_scalar_dense"]


def test_a_prediction_leaves_the_network_as_it_was() -> None:
    state, rows, _, batch = scene()
    student, images = state.learners[0].student, rows.take(batch.labelled, torch.device("cpu"))
    before = pack(student)
    probs, features = predict(state, student, images)
    assert student.training
    assert torch.equal(pack(student), before)  # batch-norm statistics too
    whole = [torch.cat(parts) for parts in zip(*(predict(state, student, row) for row in images.split(1)), strict=True)]
    torch.testing.assert_close(whole, [probs, features])  # no row depends on its batch
    assert not probs.requires_grad
    frozen = frozen_copy(student)
    torch.testing.assert_close(predict(state, frozen, images)[0], probs)
    assert not frozen.training
    assert [part.shape for part in predict(state, student, images[:0])] == [(0, 4), (0, student.projection)]
