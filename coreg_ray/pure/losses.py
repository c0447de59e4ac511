"""One function per loss of the method (METHOD sections 2 to 4): tensors in, a scalar of at least float32 out.

Every loss is a mean over rows. `denominator` replaces the number of rows here, so that replicas that each hold a part
of a batch can divide by the rows of the whole team and add up; a count below one acts as one. An empty batch costs
nothing and still has a gradient. Logits are log-normalised in float32, so that no finite input gives NaN.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from coreg_ray.pure.weights import usable_weights


def soft_cross_entropy(logits: Tensor, targets: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """CE = mean_B -sum_j t_j log p_j (METHOD section 3, step 4): logits (B, K), targets (B, K) distributions."""
    rows = -(targets * _log_probs(logits)).sum(dim=1)
    return _mean(rows, denominator)


def consistency(logits: Tensor, targets: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """mean_{B,K} (p - t)^2 (METHOD section 3, step 4): logits (B, K), targets (B, K); `denominator` counts rows."""
    rows = (_wide(logits).softmax(dim=1) - targets).square().mean(dim=1)
    return _mean(rows, denominator)


def divergence(logits: Tensor, targets: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """KL = mean_B sum_j t_j log(t_j / p_j): logits (B, K), targets (B, K) distributions; zero where p is t."""
    rows = (torch.special.xlogy(targets, targets) - targets * _log_probs(logits)).sum(dim=1)
    return _mean(rows, denominator)


def shared_mass(logits: Tensor, targets: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """mean_B -log sum_j t_j p_j, the partial cross-entropy of soft labels: logits (B, K), targets (B, K)."""
    rows = -(_log_probs(logits) + _wide(targets).log()).logsumexp(dim=1)
    return _mean(rows, denominator)


def negative(
    logits: Tensor,
    excluded: Tensor,
    *,
    weights: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Negative learning, mean_B -sum_{j excluded} log(1 - p_j); a row that excludes every class costs nothing.

    log(1 - p_j) is taken from the other classes' logits where p_j is the largest, so that it and its gradient are exact
    however near to one p_j is.

    Args:
        logits: (B, K), K of at least 2. excluded: (B, K) bool. weights: (B,) of rows; None: all one.
        denominator: number of rows in the whole team.
    """
    log_probs = _log_probs(logits)
    peak = log_probs.argmax(dim=1, keepdim=True)
    of_peak = torch.zeros_like(excluded).scatter_(1, peak, True)
    others = log_probs.masked_fill(of_peak, -math.inf).logsumexp(dim=1, keepdim=True)  # log(1 - p) of the largest
    rest = torch.log1p(-log_probs.masked_fill(of_peak, -1.0).exp())  # no other class has more than a half
    log_not = torch.where(of_peak, others, rest)
    counted = excluded & ~excluded.all(dim=1, keepdim=True)
    rows = -log_not.masked_fill(~counted, 0.0).sum(dim=1)
    return _mean(rows if weights is None else rows * weights, denominator)


def partial_cross_entropy(
    logits: Tensor, candidates: Tensor, *, weights: Tensor | None = None, denominator: Tensor | float | None = None
) -> Tensor:
    """mean over rows with |S| < K of -log sum_{j in S} p_j, or of -log sum_{j in S} w_j p_j (METHOD section 2).

    Args:
        logits: (B, K).
        candidates: (B, K) bool.
        weights: (B, K) not negative, of each candidate relative to its row's largest; None: all are 1. Those outside S
            are of no account, and a row whose candidates have none counts them all alike.
        denominator: number of `informative` rows in the whole team; None counts them here.

    Returns:
        Scalar; zero if no row is informative.
    """
    counted = informative(candidates, weights)
    # Other rows take all classes: that keeps their logarithm and its gradient finite, and they are then weighted zero.
    inside = candidates | ~counted[:, None]
    scores = _log_probs(logits)
    if weights is not None:
        scores = scores + _wide(usable_weights(inside, weights, counted)).log()
    rows = -scores.masked_fill(~inside, -math.inf).logsumexp(dim=1)
    return _mean(rows * counted, counted.sum() if denominator is None else denominator)


def informative(candidates: Tensor, weights: Tensor | None = None) -> Tensor:
    """Which rows say something: they exclude a class and keep one, 0 < |S| < K, or weigh the classes differently.

    candidates (B, K) bool, weights (B, K) or None -> (B,) bool.
    """
    some = candidates.any(dim=1)
    if weights is None:
        return some & ~candidates.all(dim=1)
    return some & ~(candidates.all(dim=1) & (weights.amax(dim=1) == weights.amin(dim=1)))


def negative_entropy(logits: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """mean_B sum_j p_j log p_j (METHOD section 2): logits (B, K); between -log K and 0."""
    log_probs = _log_probs(logits)
    return _mean((log_probs.exp() * log_probs).sum(dim=1), denominator)


def early_learning(logits: Tensor, targets: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """mean_B log(1 - <t, p>) (ELR, arXiv 2007.00151): the lower, the nearer predictions are to their targets.

    p is held between 1e-4 and 1 - 1e-4, so the logarithm is finite and a class below has no gradient.

    Args:
        logits: (B, K). targets: (B, K) without gradient, rows of sum 1 at most; a row of zeros costs nothing.
        denominator: number of rows in the whole team.

    Returns:
        Scalar, not above zero.
    """
    probs = _log_probs(logits).exp().clamp(1e-4, 1 - 1e-4)
    return _mean(torch.log1p(-(targets * probs).sum(dim=1)), denominator)


def transferred(
    probs: Tensor, forward: Tensor, excluded: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """mean_B -sum_{j excluded} log(1 - q_j), q the normalised p R: what labels a class is taken for (ILL).

    Args:
        probs: (B, K) predictions p. forward: (K, K) R of `transition.matrices`. excluded: (B, K) bool.
        denominator: number of rows in the whole team.

    Returns:
        Scalar; 1 - q is held above 1e-6.
    """
    taken = _wide(probs) @ _wide(forward)  # (B, K)
    total = taken.sum(dim=1, keepdim=True)
    left = ((total - taken) / total.clamp_min(1e-12)).clamp_min(1e-6)
    return _mean(-left.log().masked_fill(~excluded, 0.0).sum(dim=1), denominator)


def kl_to_prior(
    probs: Tensor, prior: Tensor, mean: Tensor | None = None, *, denominator: Tensor | float | None = None
) -> Tensor:
    """KL(prior || mean prediction) = sum_k prior_k log(prior_k / mean_k), the penalty of DivideMix.

    Replicas that each hold a part of the rows add up, in value and gradient: each contributes its rows' part of both.

    Args:
        probs: (B, K) predictions.
        prior: (K,), adds up to one.
        mean: (K,) of all rows of the team; None: of those given.
        denominator: number of rows in the whole team.

    Returns:
        Scalar; with the default arguments the divergence itself.
    """
    probs = _wide(probs)
    rows = torch.as_tensor(len(probs) if denominator is None else denominator, device=probs.device).clamp(min=1)
    total = (probs.sum(0) / rows if mean is None else _wide(mean)).detach().clamp(min=1e-12)
    divergence = (torch.special.xlogy(prior, prior) - prior * total.log()).sum()
    pull = -(prior / total * probs.sum(0) / rows).sum()  # has the divergence's gradient
    return pull - pull.detach() + divergence * (len(probs) / rows)


def masked_contrast(
    queries: Tensor,
    entries: Tensor,
    positive: Tensor,
    counted: Tensor,
    temperature: float = 0.07,
    *,
    weights: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Contrast with any choice of positives: L_i = log sum_counted exp s_ij - mean_positive s_ij.

    s_ij = q_i . e_j / temperature.

    Args:
        queries: (A, D) anchors. entries: (E, D). Both normalised.
        positive: (A, E) bool, inside `counted`; an anchor without any costs nothing.
        counted: (A, E) bool: entries in the anchor's sum.
        weights: (A,) of anchors; None: all one.
        denominator: number of anchors in the whole team.

    Returns:
        Scalar, mean over anchors.

    Raises:
        ValueError: temperature not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} cannot divide similarities; use a number above 0")
    if not len(queries):  # no anchor, no sum to take the logarithm of
        return _mean(_wide(queries).sum(dim=1), denominator)
    with torch.autocast(queries.device.type, enabled=False):  # similarities up to 14 need more than 8 bits
        similarity = _wide(queries) @ _wide(entries).T / temperature  # (A, E)
    alone = ~positive.any(dim=1)  # takes every entry, which keeps its logarithm finite, and is then left out
    normaliser = similarity.masked_fill(~(counted | alone[:, None]), -math.inf).logsumexp(dim=1)
    attraction = similarity.masked_fill(~positive, 0.0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    rows = (normaliser - attraction).masked_fill(alone, 0.0)
    return _mean(rows if weights is None else rows * weights, denominator)


def noise_tolerant_contrast(
    queries: Tensor,
    keys: Tensor,
    classes: Tensor,
    confident: Tensor,
    queue: Tensor,
    queue_classes: Tensor,
    queue_confident: Tensor,
    queue_valid: Tensor,
    temperature: float = 0.07,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Supervised contrast that trusts equal pseudo-classes only when both are confident (METHOD section 4).

    L_i = -1/|pos| sum_pos [s_ij - log sum_{pos and neg} exp s_ij], s = query . entry / temperature, over the entries
    [queries, keys, queue]. Positives: the anchor's own key, and entries of its class when both are confident. Entries
    of its class otherwise are in neither sum, and nor is the anchor's own query. All other classes are negatives.

    Args:
        queries: (A, D) normalised features of the anchors' first strong views; as entries they have a gradient too.
        keys: (A, D) the same rows' second views through the key encoder; key i is anchor i's own.
        classes: (A,) int pseudo-classes, of queries and keys alike.
        confident: (A,) bool, from the labelled side.
        queue: (Q, D) older keys; Q may be 0.
        queue_classes: (Q,) int.
        queue_confident: (Q,) bool.
        queue_valid: (Q,) bool; slots not yet filled take no part.
        denominator: number of anchors in the whole team.

    Returns:
        Scalar, mean over anchors. Nothing larger than (A, 2A + Q) is built.

    Raises:
        ValueError: temperature not above 0.
    """
    entries = torch.cat([_wide(queries), _wide(keys), _wide(queue)])  # (2A + Q, D)
    own_query = torch.eye(len(queries), len(entries), dtype=torch.bool, device=queries.device)
    own_key = own_query.roll(len(queries), dims=1)
    same_class = classes[:, None] == torch.cat([classes, classes, queue_classes])
    both_confident = confident[:, None] & torch.cat([confident, confident, queue_confident])
    takes_part = torch.cat([torch.ones_like(confident).repeat(2), queue_valid]) & ~own_query
    positive = own_key | (same_class & both_confident & takes_part)
    counted = positive | (~same_class & takes_part)
    return masked_contrast(queries, entries, positive, counted, temperature, denominator=denominator)


def _mean(rows: Tensor, denominator: Tensor | float | None) -> Tensor:
    """The sum of rows (B,) over `denominator`, or over B."""
    if denominator is None:
        denominator = rows.shape[0]
    if isinstance(denominator, Tensor):
        return rows.sum() / denominator.clamp(min=1)
    return rows.sum() / max(denominator, 1)


def _log_probs(logits: Tensor) -> Tensor:
    return F.log_softmax(_wide(logits), dim=1)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
