"""Slow, independent arithmetic of the label model, in plain Python, one row and one vote at a time.

Written from the words, not from the code. Votes are lists of class numbers, -1 for none; beliefs are lists of floats.
"""

from __future__ import annotations

import math
from itertools import combinations

THIRD, COPY, ROUNDS, STOP, TOLERATED = 1 / 3, 0.99, 40, 1e-3, 0.0025


def fit(votes, num_classes, compact=False):
    """A dictionary: shares, prior, table (voter, class, vote), trusted, accuracy; for `posterior`."""
    voters = range(len(votes[0]))
    shares = [1 / sum(v == w or repeats(votes, v, w, num_classes) for w in voters) for v in voters]
    model = {"shares": shares, "prior": [1 / num_classes] * num_classes, "table": None, "compact": compact}
    model["trusted"] = sum(s for v, s in enumerate(shares) if any(row[v] >= 0 for row in votes)) > 2.5
    rows = [row for row in votes if any(vote >= 0 for vote in row)]
    bare = [normal(tally(row, model)) for row in rows]
    if model["trusted"]:
        count(model, rows, bare, half=True)
        for _ in range(ROUNDS):
            before, beliefs = model["table"], [softmax(evidence(row, model)) for row in rows]
            judge = dict(model)
            count(model, rows, beliefs, half=True)
            if change(before, model["table"], model["prior"]) < STOP:
                break
        model["trusted"] = verdict(rows, beliefs, judge, model) <= TOLERATED
    prior = model["prior"]
    own = [tempered(row, model) for row in rows] if model["trusted"] else bare
    count(model, rows, [[(2 * a + b) / 3 for a, b in zip(*pair, strict=True)] for pair in zip(own, bare, strict=True)])
    if model["trusted"]:
        model["prior"] = prior
    model["accuracy"] = [agreeing(v, rows, own, bare, model["trusted"]) for v in voters]
    return model


def agreeing(voter, rows, own, bare, trusted):
    """How often a voter votes for the model's answer, the best class with a vote; else its votes' mean share."""
    total = cast = 0
    for row, belief, shares in zip(rows, own, bare, strict=True):
        if row[voter] >= 0:
            cast += 1
            answer = max((j for j, share in enumerate(shares) if share), key=lambda j: (belief[j], -j))
            total += (row[voter] == answer) if trusted else shares[row[voter]]
    return total / max(1, cast)


def posterior(row, model):
    votes, size = tally(row, model), len(model["prior"])
    if not sum(votes):
        return model["prior"]
    belief = tempered(row, model) if model["trusted"] else [max(0.0, n - sum(votes) / (2 * size)) for n in votes]
    return normal([b if n else 0.0 for b, n in zip(belief, votes, strict=True)])


def repeats(votes, v, w, num_classes):
    shared = [(row[v], row[w]) for row in votes if row[v] >= 0 and row[w] >= 0]
    fewer = min(sum(row[v] >= 0 for row in votes), sum(row[w] >= 0 for row in votes))
    if len(shared) < max(20, fewer / 2):
        return False
    habit = [
        [sum(row[u] == j for row in votes) / sum(row[u] >= 0 for row in votes) for u in (v, w)]
        for j in range(num_classes)
    ]
    chance, seen = sum(a * b for a, b in habit), sum(a == b for a, b in shared) / len(shared)
    return seen == 1 if chance > 1 - 1e-12 else (seen - chance) / (1 - chance) >= COPY


def tally(row, model):
    votes = [0.0] * len(model["prior"])
    for vote, share in zip(row, model["shares"], strict=True):
        if vote >= 0:
            votes[vote] += share
    return votes


def evidence(row, model, temper=1.0):
    return [
        math.log(model["prior"][c])
        + temper
        * sum(s * math.log(t[c][j]) for j, s, t in zip(row, model["shares"], model["table"], strict=True) if j >= 0)
        for c in range(len(model["prior"]))
    ]


def tempered(row, model):
    number = sum(s for vote, s in zip(row, model["shares"], strict=True) if vote >= 0)
    return softmax(evidence(row, model, 1 / (1 + THIRD * max(0.0, number - 1))))


def count(model, rows, beliefs, half=False):
    size = len(model["prior"])
    shares = [sum(b[c] for b in beliefs) / len(rows) for c in range(size)]
    model["prior"] = normal([0.75 * s + 0.25 / size for s in shares])
    model["table"] = []
    for v in range(len(rows[0])):
        counts = [[0.0] * size for _ in range(size)]
        for row, belief in zip(rows, beliefs, strict=True):
            if row[v] >= 0:
                for c in range(size):
                    counts[c][row[v]] += belief[c]
        cast = [sum(line) for line in counts]
        accuracy = (sum(counts[c][c] for c in range(size)) + 1 / size) / (sum(cast) + 1)
        own = [[(n + 1 / size) / (cast[c] + 1) for n in counts[c]] for c in range(size)]
        if model["compact"]:
            own = [spread(own[c][c], c, size) for c in range(size)]
        one = [spread(accuracy, c, size) for c in range(size)]
        part = 0.5 if half else 1.0
        model["table"].append(
            [[part * a + (1 - part) * b for a, b in zip(*p, strict=True)] for p in zip(own, one, strict=True)]
        )


def spread(accuracy, right, size):
    return [accuracy if j == right else (1 - accuracy) / (size - 1) for j in range(size)]


def change(before, after, prior):
    """The most that any voter's answers differ by: half their summed difference, over the classes' shares."""
    apart = []
    for old, new in zip(before, after, strict=True):
        lines = [sum(abs(a - b) for a, b in zip(*pair, strict=True)) / 2 for pair in zip(old, new, strict=True)]
        apart.append(sum(p * line for p, line in zip(prior, lines, strict=True)))
    return max(apart)


def verdict(rows, beliefs, judge, model):
    """Share of rows moved from the most votes, times the share of agreement left unexplained by the last model."""
    moved, shares, agreeing = 0, model["shares"], []
    whole = weight = implied = observed = 0.0
    for row, belief in zip(rows, beliefs, strict=True):
        votes = tally(row, judge)
        moved += votes[belief.index(max(belief))] < max(votes) - 1e-9
        pairs = [
            (shares[v] * shares[w], row[v] == row[w])
            for v, w in combinations(range(len(row)), 2)
            if min(row[v], row[w]) >= 0
        ]
        if pairs:
            agreeing.append(sum(s for s, same in pairs if same) / sum(s for s, _ in pairs))
    for v, w in combinations(range(len(rows[0])), 2):
        both = [row for row in rows if min(row[v], row[w]) >= 0]
        weight = shares[v] * shares[w] * len(both)
        whole += weight
        if both:
            observed += weight * sum(row[v] == row[w] for row in both) / len(both)
        products = (
            p * a * b
            for p, x, y in zip(model["prior"], model["table"][v], model["table"][w], strict=True)
            for a, b in zip(x, y, strict=True)
        )
        implied += weight * sum(products)
    mean = sum(agreeing) / len(agreeing)
    error = math.sqrt(max(0.0, sum(a * a for a in agreeing) / len(agreeing) - mean**2) / len(agreeing))
    beyond = max(0.0, observed / whole - implied / whole - 2 * error) / (1 - implied / whole)
    return beyond * moved / len(rows)


def normal(numbers):
    return [n / sum(numbers) for n in numbers]


def softmax(logs):
    return normal([math.exp(number - max(logs)) for number in logs])
