"""From predictions to trusted rows and training targets (METHOD section 3, steps 1 to 3).

What differs from the paper's code: nothing here divides by zero (each function says what it returns instead), alignment
needs a K-vector rather than all N x K predictions, and the mixture starts from the best split of the sorted losses, so
that neither a seed nor the order of the rows can change which rows are clean.

All but `clean_probability` run inside a training step: they never wait for the device. Distributions come back in the
dtype they came in; float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coreg_ray.pure.weights import usable_weights

LOSS_FLOOR = 1e-8  # the smallest probability a loss is computed from; min-max normalisation feels the number
_MAX_ITERATIONS, _TOLERANCE, _REG_COVAR = 10, 1e-2, 5e-4


def align(probs: Tensor, mean: Tensor, prior: Tensor) -> Tensor:
    """Distribution alignment, p <- normalise(p * prior / mean) (METHOD section 3, step 1).

    A class whose mean or prior is zero has weight zero. A row with no mass left gets the prior over the classes that
    have weight (uniform if there is none).

    Args:
        probs: (B, K) distributions.
        mean: (K,) mean prediction of the previous assessment; any positive scale.
        prior: (K,) wished distribution; any positive scale.

    Returns:
        (B, K) distributions.
    """
    # In logarithms a tiny mean cannot overflow; a weight of zero is minus infinity.
    live = (mean > 0) & (prior > 0)
    log_prior = prior.to(torch.float64).log().masked_fill(~live, -math.inf)  # (K,)
    log_weight = (log_prior - mean.to(torch.float64).log()).masked_fill(~live, -math.inf)
    fallback = torch.where(live.any(), log_prior, 0.0)
    log_probs = _wide(probs).log()
    score = log_probs + log_weight.to(log_probs.dtype)  # (B, K)
    dead = score.isneginf().all(dim=-1, keepdim=True)
    return torch.where(dead, fallback.to(score.dtype), score).softmax(dim=-1).to(probs.dtype)


def candidate_loss(probs: Tensor, candidates: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """l = -log max_{j in S} p_j, or -log max_{j in S} w_j p_j, floored at 1e-8 (METHOD section 3, step 1).

    Args:
        probs: (B, K) distributions.
        candidates: (B, K) bool; an empty set has the largest loss, 18.4.
        weights: (B, K) as `losses.partial_cross_entropy` takes them; None: all are 1.

    Returns:
        (B,) nats, at least float32.
    """
    wide = _wide(probs)
    if weights is not None:
        wide = wide * usable_weights(candidates, weights).to(wide.dtype)
    best = wide.masked_fill(~candidates, 0.0).amax(dim=-1)
    return -best.clamp_min(LOSS_FLOOR).log()


def normalise_losses(losses: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Min-max: (N,) losses between `low` and `high`, those of all rows -> (N,) in 0 .. 1; zero if low equals high."""
    wide = _wide(losses)
    low, high = (torch.as_tensor(limit, dtype=wide.dtype, device=wide.device) for limit in (low, high))
    span = high - low
    return torch.where(span > 0, (wide - low) / torch.where(span > 0, span, 1.0), 0.0).to(losses.dtype)


def clean_probability(losses: Tensor, seed: int = 0) -> Tensor:
    """w, the posterior of the lower component of a two-Gaussian mixture of the losses (METHOD section 3, step 1).

    Expectation-maximisation in float64, at most 10 iterations, tolerance 1e-2 on the mean log-likelihood, 5e-4 added to
    the variances. It starts from the split of the sorted losses that leaves the least variance inside (exact 2-means).
    With unequal variances the posterior need not fall with the loss: it is given as it is.

    Args:
        losses: (N,) finite, normally min-max normalised means over epochs.
        seed: unused; the start is not random.

    Returns:
        (N,) in 0 .. 1, at least float32, independent of the order of the rows; ones if all losses are equal.
    """
    del seed
    wide = losses.to(torch.float64)
    ordered = wide.sort().values
    if ordered.numel() == 0 or bool(ordered[0] == ordered[-1]):
        return torch.ones_like(_wide(losses))
    weight, mean, variance = _fit_two_gaussians(ordered)
    margin = _log_joint(wide, weight[0], mean[0], variance[0]) - _log_joint(wide, weight[1], mean[1], variance[1])
    return torch.where(mean[0] <= mean[1], margin, -margin).sigmoid().to(_wide(losses).dtype)


def restrict(probs: Tensor, candidates: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """An opinion: p, times the candidates' weights, restricted to S and renormalised (METHOD section 3, step 2).

    A row without mass on S gets the uniform distribution over S, or that of its weights; an empty S counts as all
    classes.

    Args:
        probs: (B, K) distributions.
        candidates: (B, K) bool.
        weights: (B, K) as `losses.partial_cross_entropy` takes them; None: all are 1.

    Returns:
        (B, K) distributions.
    """
    wide, some = _wide(probs), candidates.any(dim=-1, keepdim=True)
    allowed = candidates | ~some
    fallback = allowed.to(wide.dtype)
    if weights is not None:
        weigh = usable_weights(candidates, weights).to(wide.dtype)
        wide, fallback = wide * weigh, fallback * weigh
    inside = wide.masked_fill(~allowed, 0.0)
    inside = torch.where(inside.sum(dim=-1, keepdim=True) > 0, inside, fallback)
    return (inside / inside.sum(dim=-1, keepdim=True)).to(probs.dtype)


def geometric(*probs: Tensor, candidates: Tensor, weights: Tensor | None = None) -> Tensor:
    """The geometric mean of predictions, restricted to S and renormalised: what CR-DPLL's views agree on.

    Args:
        probs: one (B, K) for each view. candidates: (B, K) bool; an empty S counts as all classes. weights: (B, K) as
            `restrict` takes them.

    Returns:
        (B, K) distributions, the dtype of the first; a row without mass on S is as `restrict` has it.

    Raises:
        ValueError: nothing given.
    """
    if not probs:
        raise ValueError("geometric() got 0 predictions; give at least one (B, K) tensor")
    logs = torch.stack([_wide(view).log() for view in probs]).mean(dim=0)
    allowed = candidates | ~candidates.any(dim=-1, keepdim=True)
    inside = logs.masked_fill(~allowed, -torch.inf)
    peak = inside.amax(dim=-1, keepdim=True)
    shares = (inside - peak.clamp(min=-1e30)).exp()  # relative to the largest, so that small ones do not vanish
    return restrict(shares, candidates, weights=weights).to(probs[0].dtype)


def refine(opinion: Tensor, own: Tensor, clean: Tensor) -> Tensor:
    """The target of a labelled row before sharpening, w*q + (1-w)*own (METHOD section 3, step 3).

    Args:
        opinion: (B, K) q, the other network's message.
        own: (B, K) this network's mean over views.
        clean: (B,) w, the other network's belief that the row is clean.

    Returns:
        (B, K), the wider dtype of both distributions.
    """
    w = _wide(clean)[:, None]
    mixed = w * _wide(opinion) + (1 - w) * _wide(own)
    return mixed.to(torch.promote_types(opinion.dtype, own.dtype))


def guess(*probs: Tensor) -> Tensor:
    """The target of an unlabelled row before sharpening: the mean over views and networks (METHOD section 3, step 3).

    Args:
        probs: one (B, K) for each view and network.

    Returns:
        (B, K), the dtype of the first.

    Raises:
        ValueError: nothing given.
    """
    if not probs:
        raise ValueError("guess() got 0 predictions; give at least one (B, K) tensor")
    total = _wide(probs[0])
    for other in probs[1:]:
        total = total + _wide(other)
    return (total / len(probs)).to(probs[0].dtype)


def sharpen(probs: Tensor, temperature: float = 0.5) -> Tensor:
    """p^(1/T) / sum (METHOD section 3, step 3); a row of zeros gives the uniform distribution.

    Args:
        probs: (B, K), not negative; rows need not sum to one.
        temperature: T; 1 only normalises, towards 0 only the largest remain.

    Returns:
        (B, K) distributions.

    Raises:
        ValueError: T not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} cannot sharpen; use a number above 0")
    wide = _wide(probs)
    largest = wide.amax(dim=-1, keepdim=True)
    # Relative to the largest no power can overflow, and the sum cannot vanish.
    relative = torch.where(largest > 0, wide / torch.where(largest > 0, largest, 1.0), 1.0)
    powers = relative.pow(1 / temperature)
    return (powers / powers.sum(dim=-1, keepdim=True)).to(probs.dtype)


def _fit_two_gaussians(ordered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) float64 rising, not all equal -> weights, means, variances, (2,) each, lower start first."""
    split = _best_split(ordered)
    low = (torch.arange(ordered.numel(), device=ordered.device) < split).to(ordered.dtype)
    weight, mean, variance = _moments(ordered, low)
    previous = -math.inf
    for _ in range(_MAX_ITERATIONS):
        below = _log_joint(ordered, weight[0], mean[0], variance[0])
        above = _log_joint(ordered, weight[1], mean[1], variance[1])
        likelihood = torch.logaddexp(below, above).mean().item()
        weight, mean, variance = _moments(ordered, (below - above).sigmoid())
        if abs(likelihood - previous) < _TOLERANCE:
            break
        previous = likelihood
    return weight, mean, variance


def _best_split(ordered: Tensor) -> Tensor:
    """How many of the (N,) rising numbers form the lower of two groups with the least variance inside."""
    count = torch.arange(1, ordered.numel(), device=ordered.device, dtype=ordered.dtype)  # (N - 1,)
    partial = (ordered - ordered.mean()).cumsum(0)[:-1]  # sum of the lower group about the common mean
    between = partial.square() / (count * (ordered.numel() - count))
    return between.argmax() + 1


def _moments(values: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and variances (2,) of values (N,) that belong by `share` (N,) to component 0, else to 1."""
    shares = torch.stack([share, 1 - share])  # (2, N)
    mass = shares.sum(dim=1) + 10 * torch.finfo(values.dtype).eps
    mean = shares @ values / mass
    spread = torch.stack([shares[0] @ (values - mean[0]).square(), shares[1] @ (values - mean[1]).square()])
    return mass / values.numel(), mean, spread / mass + _REG_COVAR


def _log_joint(values: Tensor, weight: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log(weight * Normal(values; mean, variance)), (N,)."""
    constant = weight.log() - 0.5 * (2 * math.pi * variance).log()
    return constant - 0.5 * (values - mean).square() / variance


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
