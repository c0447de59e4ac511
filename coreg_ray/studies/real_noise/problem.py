"""A pool with votes as the variants get it: images, candidate sets, posterior, and labels that score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from coreg_ray.config.sections import LABEL_MODEL_MASS
from coreg_ray.pure import label_fit
from coreg_ray.pure.candidates import combine_votes
from coreg_ray.pure.label_model import block_sums, posterior, sets_by_mass
from coreg_ray.pure.soft_labels import largest_shares
from coreg_ray.pure.voters import survey_votes
from coreg_ray.pure.weights import relative_weights
from coreg_ray.studies.real_noise.data import Study, read_pictures, read_votes
from coreg_ray.studies.real_noise.eyes import Eyes
from coreg_ray.training.rows import Images, Rows, make_rows
from coreg_ray.training.soft import Soft

HELD_OUT_EVERY = 20  # one image of so many is not trained on


@dataclass(frozen=True)
class Problem:
    """A pool of N images with the votes of V voters over K classes, and M test images.

    Attributes:
        voters: name of the set of voters. images: N images, or what a frozen backbone saw of them, with the true
            labels, which score; in the order of the votes. votes: (N, V). test: M images likewise. shares: (N, K) of
            the votes. belief: (N, K) posterior of the label model. believed: whether that model is believed.
    """

    voters: str
    images: Images
    votes: Tensor
    test: Images
    shares: Tensor
    belief: Tensor
    believed: bool

    @property
    def classes(self) -> int:
        """K."""
        return self.shares.shape[1]

    @property
    def labels(self) -> Tensor:
        """(N,) true ones."""
        assert self.images.labels is not None
        return self.images.labels

    @property
    def held_out(self) -> Tensor:
        """(N,) bool, which images are not trained on."""
        return torch.arange(len(self.images)) % HELD_OUT_EVERY == 0

    @property
    def model_labels(self) -> Tensor:
        """(N,) the label model's labels."""
        return self.belief.argmax(dim=1)

    def sets(self, kind: str) -> tuple[Tensor, Tensor]:
        """Candidate sets (N, K) bool and what is known of each class (N, K).

        Args:
            kind: `union`, `label_model`, or, of one class each: `majority`, `model` and `truth`.
        """
        if kind == "union":
            return combine_votes(self.votes, self.classes), self.shares
        if kind == "label_model":
            return sets_by_mass(self.belief, self.votes, LABEL_MODEL_MASS), self.belief.float()
        best = {"majority": self.shares.argmax(dim=1), "model": self.model_labels, "truth": self.labels}[kind]
        single = one_hot(best, self.classes)
        return single.bool(), single.float()

    def rows(self, kind: str, weighted: bool, soft: Tensor | None) -> Rows:
        """All images as rows, held-out ones included; `kind` as of `sets`, `soft` (N, K) shares of all classes."""
        member, values = self.sets(kind)
        order = torch.argsort(self.images.numbers)
        weights = relative_weights(values, member) if weighted else None
        made = make_rows(
            self.images.numbers, self.images.pixels, member, features=self.images.features, weights=weights
        )
        return made if soft is None else replace(made, soft=Soft(*largest_shares(soft[order].float())))


def read_problems(
    study: Study, folder: Path, eyes: Eyes, rows: int, only: str | None = None, most_tested: int | None = None
) -> dict[str, Problem]:
    """The problems of a study by their voters' names; `rows`: most images of the pool, and to test, or `most_tested`.

    Raises:
        UserError: images without labels, or without votes.
    """
    pictures = read_pictures(folder / study.pool, min(rows, study.rows))
    tested = read_pictures(folder / study.test, min(most_tested or rows, study.tested))
    seen, test = eyes.see(pictures, views=True), eyes.see(tested, views=False)
    return {
        name: build(name, read_votes(folder / study.votes, pictures.ids, voters), study.classes, seen, test)
        for name, voters in study.voters.items()
        if only in (None, name)
    }


def build(voters: str, votes: Tensor, classes: int, images: Images, test: Images) -> Problem:
    """A problem from its parts: the label model is fitted to the votes (N, V) on the images."""
    survey = survey_votes(votes, classes)
    model = label_fit.fit(survey, lambda model: block_sums(votes, model))
    shares = one_hot(votes + 1, classes + 1).sum(dim=1)[:, 1:].float()
    shares = shares / shares.sum(dim=1, keepdim=True).clamp_min(1)
    return Problem(voters, images, votes, test, shares, posterior(votes, model), model.trusted)
