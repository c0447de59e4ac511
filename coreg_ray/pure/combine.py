"""One label out of votes and networks: a naive Bayes of what the annotator and the trained networks say of an image.

Given the class, votes and pixels are taken for independent witnesses: p(y | votes, image) goes with
p(y | votes) p(y | image) / p(y). Three things about that:

1. Prompts and voters are no independent witnesses of one another: a model that errs in one wording errs in the next.
   Their opinions are therefore added up (shares of the votes, or a label model's posterior) and not multiplied, which
   would count one mistake once for every prompt.
2. Nor are the two networks, which have learned from the same sets: what counts is the mean of their log probabilities,
   which is one witness, not two.
3. Both sides must mean what they say. The networks' temperature is the one at which they explain best what the
   annotator says (`agreeing_temperature`), which needs no label: networks that were trained on mixed-up images are less
   sure than they are right, and those that have learned their labels by heart are surer.
4. Nobody is beyond doubt. The annotator's distribution is mixed with the uniform one as far as the networks find its
   candidate sets unsound, so that what nobody has voted for stays possible, and a network that is sure is heard.
5. An annotator errs by class: one that calls most sevens nines says little by "nine". Half of what its answers mean is
   read from the networks (`confusions`), half is assumed, since the networks may be the ones who err.
6. A label model that is believed knows its voters' errors better than networks that have learned from them: its
   posterior counts as it is, nearly undoubted, and no confusion is read from networks. They in turn are asked how sure
   they are on images that they have not been trained on, where there are some: those they know by heart.
"""

from __future__ import annotations

import torch
from torch import Tensor

BELIEVED_DOUBT = 0.01  # of a label model that is believed
FEWEST_APART = 32  # images that were not trained on and settle the temperature


def annotator_distribution(
    indices: Tensor, counts: Tensor, votes: Tensor, scores: Tensor, num_classes: int, by_scores: bool = False
) -> Tensor:
    """What the annotator says of every row, from its candidate set as it is stored.

    By votes: the shares of the votes among the candidates; a row on which nobody has voted goes by its scores. By
    scores: the scores themselves, and what is missing from their sum to one is spread evenly over all other classes.
    A row without either is uniform over its candidates, or over all classes where it has none.

    Args:
        indices: (M,) int candidates, row after row. counts: (B,) int64 candidates of each row, summing to M.
        votes: (M,) votes for each candidate. scores: (M,) in 0 .. 1, probability of each candidate.
        num_classes: K. by_scores: the scores are a posterior (`candidates.mode` label_model), so votes do not count.

    Returns:
        (B, K) float32 distributions. Equal votes are equal to the last bit, so that `argmax` takes the lowest class.
    """
    rows = len(counts)
    row = torch.arange(rows).repeat_interleave(counts, output_size=len(indices))
    cell = row * num_classes + indices

    def dense(values: Tensor) -> Tensor:
        return torch.zeros(rows * num_classes).scatter_(0, cell, values.float()).view(rows, num_classes)

    member, told = dense(torch.ones(len(indices))), dense(scores).clamp(min=0)
    others = num_classes - counts
    rest = (1 - told.sum(dim=1)).clamp(min=0) / others.clamp(min=1)  # (B,) for each class outside
    believed = told + (1 - member) * rest[:, None]
    silent = told.sum(dim=1, keepdim=True) <= 0
    believed = torch.where(silent, torch.where(counts[:, None] > 0, member, 1.0), believed)
    if not by_scores:
        cast = dense(votes)
        believed = torch.where(cast.sum(dim=1, keepdim=True) > 0, cast, believed)
    return believed / believed.sum(dim=1, keepdim=True)


def doubted(distribution: Tensor, doubt: float) -> Tensor:
    """A distribution mixed with the uniform one: (1 - doubt) p + doubt / K.

    Args:
        distribution: (B, K). doubt: in 0 .. 1.

    Returns:
        (B, K).
    """
    return (1 - doubt) * distribution + doubt / distribution.shape[1]


def confusions(annotator: Tensor, networks: Tensor, doubt: float) -> Tensor:
    """What the annotator says of images of each class: half as the networks see it, half as is assumed of it.

    Args:
        annotator: (B, K) distributions. networks: (B, K) distributions. doubt: as `doubted` takes it.

    Returns:
        (K, K) class before answer; rows sum to one. A class that no network sees has the assumed row alone.
    """
    classes = annotator.shape[1]
    seen = networks.double().T @ annotator.double()  # (K, K)
    mass = seen.sum(dim=1, keepdim=True)
    assumed = doubted(torch.eye(classes, dtype=torch.float64), doubt)
    return torch.where(mass > 0.5, (seen / mass.clamp(min=0.5) + assumed) / 2, assumed).float()


def heard(annotator: Tensor, table: Tensor) -> Tensor:
    """What an annotator's answers say of the class, given its confusions: p(answer | y) for each y.

    With the assumed confusions alone that is `doubted`.

    Args:
        annotator: (B, K) distributions over answers. table: (K, K) of `confusions`.

    Returns:
        (B, K), rows of any sum.
    """
    return annotator @ table.T


def combine(annotator: Tensor, networks: Tensor, prior: Tensor | None = None) -> Tensor:
    """Naive Bayes of annotator and networks: log p = log annotator + mean log p of the networks - log prior + c.

    Either side alone decides where the other one is uniform (or says no more than the prior). A class that one side
    excludes is excluded, so a side that is certain decides, unless the other one excludes just that class. Where the
    two leave no class, each counts half. The networks' order does not matter.

    Args:
        annotator: (B, K) distributions, or likelihoods of any scale. networks: (n, B, K) log probabilities of n
            networks.
        prior: (K,) what both sides have assumed of the classes, so that it counts once; any positive scale, None for
            uniform. A class without prior is excluded.

    Returns:
        (B, K) distributions in float32.
    """
    pooled = pool(networks)
    score = annotator.double().log() + pooled
    if prior is not None:
        score = (score - prior.double().log()).masked_fill(prior <= 0, -torch.inf)
    dead = score.isneginf().all(dim=1, keepdim=True)
    either = (annotator.double() + pooled.exp()) / 2
    return torch.where(dead, either, score.masked_fill(dead, 0.0).softmax(dim=1)).float()


def pool(networks: Tensor) -> Tensor:
    """The opinion that several networks have together: the mean of their log probabilities, as a distribution.

    Where they leave no class, because each excludes what the others think, it is the mean of their probabilities.

    Args:
        networks: (n, B, K) log probabilities.

    Returns:
        (B, K) float64 log probabilities.
    """
    wide = networks.double()
    mean = wide.mean(dim=0)
    dead = mean.isneginf().all(dim=1, keepdim=True)
    return torch.where(dead, wide.exp().mean(dim=0).log(), mean.masked_fill(dead, 0.0).log_softmax(dim=1))


def agreeing_temperature(annotator: Tensor, logits: Tensor) -> float:
    """The temperature of the networks at which the annotator's answers are likeliest, given what the networks say.

    The likelihood of an answer is the sum over classes of q(y) p(y): large where both are sure of one class, small
    where they are sure of different ones. So networks are sharpened as long as they agree with an annotator that is
    doubted as far as it should be, and softened where they contradict it for sure.

    Args:
        annotator: (B, K) distributions, doubted. logits: (n, B, K) of n networks.

    Returns:
        One of 49 steps of 9 % from 1/8 to 8; 1 without any row.
    """
    mean = logits.float().mean(dim=0)
    if not len(mean):
        return 1.0

    def likelihood(temperature: float) -> float:
        return float(((mean / temperature).softmax(dim=1) * annotator).sum(dim=1).double().log().mean())

    return max((2 ** (step / 8) for step in range(-24, 25)), key=likelihood)


def settled(
    annotator: Tensor, logits: Tensor, doubt: float, believed: bool, apart: Tensor, confused: bool = True
) -> tuple[float, Tensor | None]:
    """What settles how a sample of B images is combined: the networks' temperature, and the annotator's confusions.

    Args:
        annotator: (B, K) distributions. logits: (n, B, K) of n networks. doubt: as `doubted` takes it.
        believed: whether the distributions are the posterior of a label model that is believed.
        apart: (B,) bool, which images no network was trained on.
        confused: whether confusions can be told apart on so many images.

    Returns:
        The temperature; confusions (K, K), None where the annotator is taken as it is.
    """
    if believed and int(apart.sum()) >= FEWEST_APART:
        return agreeing_temperature(doubted(annotator[apart], doubt), logits[:, apart]), None
    temperature = agreeing_temperature(doubted(annotator, doubt), logits)
    if believed or not confused or not len(annotator):
        return temperature, None
    networks = pool((logits / temperature).log_softmax(dim=2)).exp()
    return temperature, confusions(annotator, networks, doubt)
