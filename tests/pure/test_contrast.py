"""Noise-tolerant contrast against the oracle, its gradient, and the laws it obeys."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from coreg_ray.pure.losses import masked_contrast, noise_tolerant_contrast

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def contrast_inputs(anchors, slots, dims=6, classes=3, dtype=torch.float64, seed=0):
    generator = seeded(seed)

    def unit(rows):
        return torch.nn.functional.normalize(torch.randn(rows, dims, generator=generator, dtype=torch.float64), dim=1)

    def integers(rows):
        return torch.randint(0, classes, (rows,), generator=generator)

    def bits(rows):
        return torch.rand(rows, generator=generator) < 0.6

    return {
        "queries": unit(anchors).to(dtype),
        "keys": unit(anchors).to(dtype),
        "classes": integers(anchors),
        "confident": bits(anchors),
        "queue": unit(slots).to(dtype),
        "queue_classes": integers(slots),
        "queue_confident": bits(slots),
        "queue_valid": bits(slots),
    }


def counted_entries(inputs):
    """Which entries stand in each anchor's sum, from the words of section 4: (A, 2A + Q) bool."""
    anchors = len(inputs["classes"])
    classes = torch.cat([inputs["classes"], inputs["classes"], inputs["queue_classes"]]).tolist()
    sure = torch.cat([inputs["confident"], inputs["confident"], inputs["queue_confident"]]).tolist()
    valid = [True] * 2 * anchors + inputs["queue_valid"].tolist()

    def counts(i, j):
        if j in (i, anchors + i):
            return j != i  # the own key always, the own query never
        return valid[j] and (classes[i] != classes[j] or (sure[i] and sure[j]))

    return torch.tensor([[counts(i, j) for j in range(len(classes))] for i in range(anchors)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize(("anchors", "slots"), [(12, 30), (1, 0), (7, 0), (1, 9), (0, 5), (0, 0)])
def test_agrees_with_the_oracle(device, dtype, classes, anchors, slots):
    inputs = contrast_inputs(anchors, slots, classes=classes, dtype=dtype)
    got = noise_tolerant_contrast(**{name: value.to(device) for name, value in inputs.items()})
    assert got.shape == ()
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    expected = oracle.noise_tolerant_contrast(
        **{name: (value.double() if value.is_floating_point() else value).tolist() for name, value in inputs.items()}
    )
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5  # narrow types are computed in float32
    assert got.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_gradients_are_right(temperature):
    inputs = contrast_inputs(5, 6)
    moving = [inputs.pop(name).requires_grad_() for name in ("queries", "keys", "queue")]

    def loss(queries, keys, queue):
        return noise_tolerant_contrast(queries, keys, queue=queue, **inputs, temperature=temperature)

    assert torch.autograd.gradcheck(loss, moving)


def test_does_not_feel_the_order_of_anchors_slots_or_class_numbers():
    inputs = contrast_inputs(10, 20)
    whole = noise_tolerant_contrast(**inputs)
    anchors, slots = torch.randperm(10, generator=seeded(5)), torch.randperm(20, generator=seeded(6))
    permuted = {name: value[slots if name.startswith("queue") else anchors] for name, value in inputs.items()}
    torch.testing.assert_close(noise_tolerant_contrast(**permuted), whole)
    renamed = {name: (2 - value if name.endswith("classes") else value) for name, value in inputs.items()}
    torch.testing.assert_close(noise_tolerant_contrast(**renamed), whole)


@pytest.mark.parametrize("slot", range(20))
def test_only_what_is_in_the_sum_matters(slot):
    inputs = contrast_inputs(1, 20, seed=2)
    before = noise_tolerant_contrast(**inputs)
    counted = counted_entries(inputs)[0, 2:]
    assert 5 < counted.sum() < 15
    inputs["queue"][slot] = torch.randn(6, generator=seeded(slot), dtype=torch.float64) * 5
    assert torch.equal(noise_tolerant_contrast(**inputs), before) == (not counted[slot])


def test_ignored_entries_get_no_gradient():
    inputs = contrast_inputs(10, 20)
    inputs["queue"].requires_grad_()
    noise_tolerant_contrast(**inputs).backward()
    used = counted_entries(inputs)[:, 20:].any(0)
    assert torch.equal(inputs["queue"].grad.any(1), used)
    assert not used.all()


def test_an_unfilled_queue_is_no_queue():
    inputs = contrast_inputs(8, 20)
    inputs["queue_valid"][:] = False
    empty = {name: (value[:0] if name.startswith("queue") else value) for name, value in inputs.items()}
    torch.testing.assert_close(noise_tolerant_contrast(**inputs), noise_tolerant_contrast(**empty))


def test_without_confidence_only_the_own_key_attracts():
    inputs = contrast_inputs(8, 20)
    inputs["confident"][:] = False
    similarity = inputs["queries"] @ torch.cat([inputs["queries"], inputs["keys"], inputs["queue"]]).T / 0.07
    own = similarity[:, 8:].diagonal()
    expected = (similarity.masked_fill(~counted_entries(inputs), -math.inf).logsumexp(1) - own).mean()
    torch.testing.assert_close(noise_tolerant_contrast(**inputs), expected)


@pytest.mark.parametrize("sure", [True, False])
def test_the_own_key_is_positive_whatever_its_flags(sure):
    inputs = contrast_inputs(1, 0)
    inputs["confident"][:] = sure
    assert noise_tolerant_contrast(**inputs).item() == pytest.approx(0, abs=1e-12)  # alone in its own sum


def test_other_queries_attract_and_repel_like_keys_of_their_rows():
    """Two anchors without a queue, by hand: the other's query stands beside the other's key, with a gradient."""
    inputs = contrast_inputs(2, 0)
    queries, keys = inputs["queries"].requires_grad_(), inputs["keys"]
    for same in (True, False):
        inputs.update(classes=torch.tensor([1, 1 if same else 2]), confident=torch.tensor([True, True]))
        s = {(i, name, j): entry[j] @ queries[i] / 0.07 for i in (0, 1) for j in (0, 1) for name, entry in
             (("query", queries), ("key", keys))}  # fmt: skip
        rows = []
        for i, other in ((0, 1), (1, 0)):
            all_counted = torch.stack([s[i, "key", i], s[i, "query", other], s[i, "key", other]])
            attracted = all_counted.mean() if same else s[i, "key", i]
            rows.append(all_counted.logsumexp(0) - attracted)
        expected = torch.stack(rows).mean()
        loss = noise_tolerant_contrast(**inputs)
        torch.testing.assert_close(loss, expected)
        gradients = [torch.autograd.grad(value, queries, retain_graph=True)[0] for value in (loss, expected)]
        torch.testing.assert_close(*gradients)


def test_of_two_replicas_adds_up():
    inputs = contrast_inputs(6, 20)
    half = contrast_inputs(6, 20, seed=1)
    both = [noise_tolerant_contrast(**part, denominator=12) for part in (inputs, half)]
    torch.testing.assert_close(sum(both), (noise_tolerant_contrast(**inputs) + noise_tolerant_contrast(**half)) / 2)


def test_without_anchors_still_has_a_gradient():
    weights = torch.ones(6, dtype=torch.float64, requires_grad=True)
    inputs = contrast_inputs(0, 5)
    loss = noise_tolerant_contrast(**dict(inputs, queries=inputs["queries"] * weights))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(weights.grad, torch.zeros_like(weights))


def test_keeps_its_precision_under_mixed_precision():
    inputs = contrast_inputs(12, 30, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = noise_tolerant_contrast(**inputs)
    torch.testing.assert_close(mixed, noise_tolerant_contrast(**inputs), rtol=1e-6, atol=1e-6)


def test_builds_nothing_larger_than_anchors_times_entries():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numel = max(self.numel, result.numel())
            return result

    inputs = contrast_inputs(16, 48)
    with Largest() as seen:
        noise_tolerant_contrast(**inputs)
    assert seen.numel == 16 * (2 * 16 + 48)


@pytest.mark.parametrize("temperature", [0.0, -0.07])
def test_refuses_a_temperature_of_nothing(temperature):
    with pytest.raises(ValueError, match="temperature"):
        noise_tolerant_contrast(**contrast_inputs(2, 2), temperature=temperature)


def test_nothing_waits_for_the_device():
    inputs = contrast_inputs(8, 8)
    with FakeTensorMode() as fake:  # tensors without values: looking at one raises
        noise_tolerant_contrast(**{name: fake.from_tensor(value) for name, value in inputs.items()})


def test_any_masks_make_a_contrast_and_an_anchor_without_a_positive_costs_nothing() -> None:
    random = torch.Generator().manual_seed(2)
    queries = torch.nn.functional.normalize(torch.randn(4, 6, generator=random, dtype=torch.float64), dim=1)
    entries = torch.nn.functional.normalize(torch.randn(9, 6, generator=random, dtype=torch.float64), dim=1)
    positive = torch.rand(4, 9, generator=random) < 0.4
    counted = positive | (torch.rand(4, 9, generator=random) < 0.5)
    positive[3], counted[3] = False, False
    weights = torch.tensor([1.0, 0.5, 2.0, 7.0], dtype=torch.float64)
    queries.requires_grad_()
    got = masked_contrast(queries, entries, positive, counted, 0.2, weights=weights, denominator=8)
    expected = 0.0
    for i in range(3):
        scores = [float(queries[i].detach() @ entries[j]) / 0.2 for j in range(9)]
        total = math.log(sum(math.exp(scores[j]) for j in range(9) if counted[i, j]))
        mine = [scores[j] for j in range(9) if positive[i, j]]
        expected += float(weights[i]) * (total - sum(mine) / len(mine)) / 8
    assert float(got.detach()) == pytest.approx(expected)
    got.backward()
    assert queries.grad is not None
    assert queries.grad.isfinite().all()
    assert not queries.grad[3].any()
