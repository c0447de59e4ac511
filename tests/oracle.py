"""Slow, independent arithmetic: docs/method.md in plain Python, float64, one row and one class at a time.

Written from the page, not from the code. Inputs are numpy arrays or nested lists; outputs are numpy arrays or floats.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

# --- section 1: candidate sets and figures about the votes ---------------------------------------------------------


def candidate_sets(probs, mode="union", k=5, threshold=0.1, ratio=0.5, mass=0.9):
    sets = []
    for prompts in np.asarray(probs, dtype=np.float64):
        classes = range(prompts.shape[1])
        mean = [sum(prompt[j] for prompt in prompts) / len(prompts) for j in classes]
        ranking = sorted(classes, key=lambda j: (-mean[j], j))
        if mode == "union":
            chosen = {max(classes, key=lambda j: (prompt[j], -j)) for prompt in prompts}
        elif mode == "single":
            chosen = {ranking[0]}
        elif mode == "top_k":
            chosen = set(ranking[:k])
        elif mode == "threshold":
            chosen = {j for j in classes if mean[j] >= threshold} | {ranking[0]}
        elif mode == "ratio":
            chosen = {j for j in ranking[:k] if mean[j] >= ratio * mean[ranking[0]]}
        else:
            chosen, reached = set(), 0.0
            for j in ranking:
                chosen.add(j)
                reached += mean[j]
                if reached >= mass:
                    break
        sets.append([j in chosen for j in classes])
    return np.array(sets, dtype=bool)


def combine_votes(votes, num_classes):
    sets = []
    for row in votes:
        voted = {int(v) for v in row if v >= 0} or set(range(num_classes))
        sets.append([j in voted for j in range(num_classes)])
    return np.array(sets, dtype=bool).reshape(len(votes), num_classes)


def quality(votes, num_classes, labels=None):
    sizes, pairs, agreeing = [], 0, 0
    counts = [0] * num_classes
    for row in votes:
        voted = [int(v) for v in row if v >= 0]
        for v in voted:
            counts[v] += 1
        if voted:
            sizes.append(len(set(voted)))
        for a, b in combinations(voted, 2):
            pairs += 1
            agreeing += a == b
    figures = {
        "rows": len(votes),
        "rows_without_vote": len(votes) - len(sizes),
        "mean_candidates": sum(sizes) / len(sizes) if sizes else None,
        "singletons": sizes.count(1) / len(sizes) if sizes else None,
        "agreement": agreeing / pairs if pairs else None,
        "votes_per_class": counts,
        "classes_without_votes": [j for j in range(num_classes) if counts[j] == 0],
    }
    if labels is not None:
        known = [(row, label) for row, label in zip(votes, labels, strict=True) if label >= 0]
        judged = [(row, label) for row, label in known if max(row) >= 0]
        if known:
            figures["prompt_accuracy"] = [
                sum(row[i] == label for row, label in known) / len(known) for i in range(len(votes[0]))
            ]
            covered = sum(label in row for row, label in judged)
            figures["coverage"] = covered / len(judged) if judged else None
            figures["eta"] = (len(judged) - covered) / len(judged) if judged else None
    return figures


# --- section 3, steps 1 to 3 ---------------------------------------------------------------------------------------


def align(probs, mean, prior):
    classes = range(len(mean))
    weights = [prior[j] / mean[j] if mean[j] > 0 else 0.0 for j in classes]
    rows = []
    for p in np.asarray(probs, dtype=np.float64):
        row = [p[j] * weights[j] for j in classes]
        if sum(row) == 0:  # nothing left: the prior over the classes that have weight, else uniform
            row = [prior[j] if weights[j] > 0 else 0.0 for j in classes]
        if sum(row) == 0:
            row = [1.0 for _ in classes]
        rows.append([x / sum(row) for x in row])
    return np.array(rows)


def candidate_loss(probs, candidates):
    losses = []
    for p, s in zip(np.asarray(probs, dtype=np.float64), candidates, strict=True):
        losses.append(-math.log(max([x for x, inside in zip(p, s, strict=True) if inside] + [1e-8])))
    return np.array(losses)


def clean_probability(losses):
    """Expectation-maximisation by the book; the start is the best of all ways to cut the sorted losses in two."""
    x = [float(v) for v in losses]
    if min(x) == max(x):
        return np.ones(len(x))
    ordered = sorted(x)

    def scatter(part):
        centre = sum(part) / len(part)
        return sum((v - centre) ** 2 for v in part)

    cut = min(range(1, len(x)), key=lambda i: scatter(ordered[:i]) + scatter(ordered[i:]))
    members = [[v <= ordered[cut - 1] for v in x]]
    responsibilities = [[float(m) for m in members[0]], [1.0 - m for m in members[0]]]

    def maximise(resp):
        components = []
        for r in resp:
            mass = sum(r) + 10 * np.finfo(float).eps
            centre = sum(ri * v for ri, v in zip(r, x, strict=True)) / mass
            variance = sum(ri * (v - centre) ** 2 for ri, v in zip(r, x, strict=True)) / mass + 5e-4
            components.append((mass / len(x), centre, variance))
        return components

    def expect(components):
        resp: list[list[float]] = [[], []]
        likelihood = 0.0
        for v in x:
            logs = [math.log(w) - 0.5 * math.log(2 * math.pi * s) - (v - m) ** 2 / (2 * s) for w, m, s in components]
            total = max(logs) + math.log(sum(math.exp(value - max(logs)) for value in logs))
            likelihood += total / len(x)
            for r, value in zip(resp, logs, strict=True):
                r.append(math.exp(value - total))
        return resp, likelihood

    components, previous = maximise(responsibilities), -math.inf
    for _ in range(10):
        responsibilities, likelihood = expect(components)
        components = maximise(responsibilities)
        if abs(likelihood - previous) < 1e-2:
            break
        previous = likelihood
    responsibilities, _ = expect(components)
    return np.array(responsibilities[0 if components[0][1] <= components[1][1] else 1])


def restrict(probs, candidates):
    rows = []
    for p, s in zip(np.asarray(probs, dtype=np.float64), candidates, strict=True):
        inside = list(s) if any(s) else [True] * len(s)
        row = [x if keep else 0.0 for x, keep in zip(p, inside, strict=True)]
        if sum(row) == 0:
            row = [1.0 if keep else 0.0 for keep in inside]
        rows.append([x / sum(row) for x in row])
    return np.array(rows)


def refine(opinion, own, clean):
    return np.array(
        [
            [w * q + (1 - w) * p for q, p in zip(q_row, p_row, strict=True)]
            for q_row, p_row, w in zip(opinion, own, clean, strict=True)
        ]
    )


def guess(*probs):
    rows, classes = np.asarray(probs[0]).shape
    return np.array([[sum(p[i][j] for p in probs) / len(probs) for j in range(classes)] for i in range(rows)])


def sharpen(probs, temperature=0.5):
    rows = []
    for p in np.asarray(probs, dtype=np.float64):
        row = [x ** (1 / temperature) for x in p]
        rows.append([x / sum(row) for x in row])
    return np.array(rows)


# --- sections 2 to 4: losses ---------------------------------------------------------------------------------------


def log_softmax(row):
    top = max(row)
    total = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - total for x in row]


def soft_cross_entropy(logits, targets):
    rows = [
        -sum(t * lp for t, lp in zip(target, log_softmax(row), strict=True))
        for row, target in zip(logits, targets, strict=True)
    ]
    return sum(rows) / len(rows) if rows else 0.0


def consistency(logits, targets):
    terms = [
        (math.exp(lp) - t) ** 2
        for row, target in zip(logits, targets, strict=True)
        for lp, t in zip(log_softmax(row), target, strict=True)
    ]
    return sum(terms) / len(terms) if terms else 0.0


def partial_cross_entropy(logits, candidates):
    rows = []
    for row, chosen in zip(logits, candidates, strict=True):
        inside = [lp for lp, keep in zip(log_softmax(row), chosen, strict=True) if keep]
        if 0 < len(inside) < len(row):
            rows.append(-(max(inside) + math.log(sum(math.exp(lp - max(inside)) for lp in inside))))
    return sum(rows) / len(rows) if rows else 0.0


def negative_entropy(logits):
    rows = [sum(math.exp(lp) * lp for lp in log_softmax(row)) for row in logits]
    return sum(rows) / len(rows) if rows else 0.0


def noise_tolerant_contrast(
    queries, keys, classes, confident, queue, queue_classes, queue_confident, queue_valid, temperature=0.07
):
    losses = []
    for i, query in enumerate(queries):
        entries = [(other, classes[j], confident[j], False) for j, other in enumerate(queries) if j != i]
        entries += [(key, classes[j], confident[j], j == i) for j, key in enumerate(keys)]
        for key, c, sure, valid in zip(queue, queue_classes, queue_confident, queue_valid, strict=True):
            if valid:
                entries.append((key, c, sure, False))
        positives, negatives = [], []
        for key, c, sure, own in entries:
            s = sum(a * b for a, b in zip(query, key, strict=True)) / temperature
            if own or (c == classes[i] and sure and confident[i]):
                positives.append(s)
            elif c != classes[i]:
                negatives.append(s)
        everyone = positives + negatives
        log_sum = max(everyone) + math.log(sum(math.exp(s - max(everyone)) for s in everyone))
        losses.append(-sum(s - log_sum for s in positives) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0


# --- section 3, step 5 ---------------------------------------------------------------------------------------------


def update_prototypes(prototypes, features, classes, momentum=0.999):
    moved: dict[int, list[float]] = {}
    for z, c in zip(features, classes, strict=True):
        if c >= 0:
            old = moved.get(int(c), prototypes[int(c)])
            moved[int(c)] = [momentum * a + (1 - momentum) * b for a, b in zip(old, z, strict=True)]
    result = [list(map(float, o)) for o in prototypes]
    for c, o in moved.items():
        length = math.sqrt(sum(a * a for a in o))
        if length > 0:
            result[c] = [a / length for a in o]
    return np.array(result)
