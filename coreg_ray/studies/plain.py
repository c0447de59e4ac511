"""The baseline: the same step as a careful but plain program would take it. Nothing of the product uses this file.

What is plain about it: Pillow makes every view in the main process, image by image; float32 and contiguous layout;
every view goes through each network by itself; prototypes, key encoder and queue are brought up to date in Python.
What it computes is METHOD sections 3 and 4, exactly as `methods.coreg.coreg_step` does with the paper's two weak views
a network (`method.weak_views 2`): tests compare the two, given the same views and the same mixing.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from coreg_ray.studies.pillow_views import strong_view, weak_view
from coreg_ray.training.networks import Student
from coreg_ray.training.state import Learner

if TYPE_CHECKING:
    from coreg_ray.config import MethodConfig


@dataclass
class Views:
    """Two weak and two strong views of the labelled rows x (b) and of the unlabelled rows u: float, 0..255."""

    weak_x: tuple[Tensor, Tensor]
    weak_u: tuple[Tensor, Tensor]
    strong_x: tuple[Tensor, Tensor]
    strong_u: tuple[Tensor, Tensor]


@dataclass
class Mixing:
    """mixup's weight, and which of the 2 (b + u) rows each row is mixed with."""

    lam: float
    permutation: Tensor


class PlainLearner:
    """The state of one network: copies of a `Learner`'s, so that both start from the same point."""

    def __init__(self, learner: Learner, method: MethodConfig) -> None:
        assert learner.memory.keys is not None
        self.student, self.peer, self.keys = (
            copy.deepcopy(network).to(memory_format=torch.contiguous_format)
            for network in (learner.student, learner.peer, learner.memory.keys)
        )
        self.prototypes = learner.memory.prototypes.clone()
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), method.learning_rate, momentum=method.momentum, weight_decay=method.weight_decay
        )
        queue = learner.memory.queue
        newest_first = (queue.position - 1 - torch.arange(len(queue), device=queue.keys.device)) % max(len(queue), 1)
        kept = newest_first[queue.valid[newest_first]]
        self.queue, self.queue_classes = queue.keys[kept], queue.classes[kept]
        self.queue_confident = queue.confident[kept]

    def step(
        self, views: Views, opinion: Tensor, clean: Tensor, mixing: Mixing, ramp: float, method: MethodConfig
    ) -> list[float]:
        """One step; returns the weighted terms: label, consistency, prototype, contrast.

        opinion (b, K) and clean (b,) come from the other network; ramp is consistency's share of its full weight.
        """
        target_x, target_u, features = self._pseudo_labels(views, opinion, clean, method)
        classes = torch.cat([target_x, target_u]).argmax(dim=1)
        self._move_prototypes(features, classes, method.prototype_momentum)
        terms = self._mixed_terms(views, target_x, target_u, mixing, ramp, method)
        contrast, keys, confident = self._contrast(views, classes, method.contrast_temperature)
        terms.append(method.contrast_weight * contrast)
        self.optimizer.zero_grad()
        torch.stack(terms).sum().backward()
        self.optimizer.step()
        self._follow(method.key_momentum)
        self.queue = torch.cat([keys, self.queue])[: method.queue_size]
        self.queue_classes = torch.cat([classes, self.queue_classes])[: method.queue_size]
        self.queue_confident = torch.cat([confident, self.queue_confident])[: method.queue_size]
        return [term.item() for term in terms]

    @torch.no_grad()
    def _pseudo_labels(
        self, views: Views, opinion: Tensor, clean: Tensor, method: MethodConfig
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Targets of x and u, and the features of the first weak view of x; one pass a view and network."""
        self.student.eval()
        logits, features = self.student(views.weak_x[0])
        own_x = (logits.softmax(1) + _probs(self.student, views.weak_x[1])) / 2
        passes = [_probs(network, view) for network in (self.student, self.peer) for view in views.weak_u]
        self.student.train()
        target_x = clean[:, None] * opinion + (1 - clean[:, None]) * own_x
        return _sharp(target_x, method.temperature), _sharp(torch.stack(passes).mean(0), method.temperature), features

    @torch.no_grad()
    def _move_prototypes(self, features: Tensor, classes: Tensor, momentum: float) -> None:
        for feature, label in zip(features, classes.tolist(), strict=False):
            self.prototypes[label] = momentum * self.prototypes[label] + (1 - momentum) * feature
        self.prototypes = F.normalize(self.prototypes, dim=1)

    def _mixed_terms(
        self, views: Views, target_x: Tensor, target_u: Tensor, mixing: Mixing, ramp: float, method: MethodConfig
    ) -> list[Tensor]:
        inputs = torch.cat([*views.strong_x, *views.strong_u])
        targets = torch.cat([target_x, target_x, target_u, target_u])
        mixed = mixing.lam * inputs + (1 - mixing.lam) * inputs[mixing.permutation]
        mixed_targets = mixing.lam * targets + (1 - mixing.lam) * targets[mixing.permutation]
        logits, features = self.student(mixed)
        count = 2 * len(target_x)

        def two_terms(scores: Tensor) -> tuple[Tensor, Tensor]:
            label = -(mixed_targets[:count] * F.log_softmax(scores[:count], dim=1)).sum(dim=1).mean()
            spread = ((scores[count:].softmax(dim=1) - mixed_targets[count:]) ** 2).mean()
            return label, spread

        label, spread = two_terms(logits)
        near, near_spread = two_terms(features @ self.prototypes.T / method.prototype_temperature)
        prototype = method.prototype_weight * (near + method.lambda_u * near_spread)
        return [label, ramp * method.lambda_u * spread, prototype]

    def _contrast(self, views: Views, classes: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of section 4, and the keys with their confidence for the queue."""
        labelled = len(views.strong_x[0])
        confident = torch.arange(len(classes), device=classes.device) < labelled
        _, queries = self.student(torch.cat([views.strong_x[0], views.strong_u[0]]))
        with torch.no_grad():
            _, keys = self.keys(torch.cat([views.strong_x[1], views.strong_u[1]]))
        entries = torch.cat([queries, keys, self.queue])
        similarity = queries @ entries.T / temperature
        same = classes[:, None] == torch.cat([classes, classes, self.queue_classes])[None]
        sure = confident[:, None] & torch.cat([confident, confident, self.queue_confident])[None]
        positive = (same & sure).float()
        positive[:, : len(classes)].fill_diagonal_(0.0)  # the own query
        positive[:, len(classes) : 2 * len(classes)].fill_diagonal_(1.0)  # the own key
        counted = torch.maximum(positive, (~same).float())
        highest = similarity.max(dim=1, keepdim=True).values.detach()
        total = (torch.exp(similarity - highest) * counted).sum(dim=1, keepdim=True).log() + highest
        return -((similarity - total) * positive).sum(dim=1).div(positive.sum(dim=1)).mean(), keys, confident

    @torch.no_grad()
    def _follow(self, momentum: float) -> None:
        for tensors in ("parameters", "buffers"):
            for key, query in zip(getattr(self.keys, tensors)(), getattr(self.student, tensors)(), strict=True):
                if key.is_floating_point():
                    key.copy_(momentum * key + (1 - momentum) * query)


def pillow_batch(images_x: np.ndarray, images_u: np.ndarray, draws: random.Random, device: torch.device) -> Views:
    """All eight views of a step: images (b, S, S, 3) and (u, S, S, 3) uint8."""

    def stack(images: np.ndarray, make: Callable[[np.ndarray, random.Random], Image.Image]) -> Tensor:
        pictures = [torch.from_numpy(np.array(make(image, draws))).permute(2, 0, 1).float() for image in images]
        return torch.stack(pictures).contiguous().to(device)

    def both(images: np.ndarray, make: Callable[[np.ndarray, random.Random], Image.Image]) -> tuple[Tensor, Tensor]:
        return stack(images, make), stack(images, make)

    return Views(
        both(images_x, weak_view), both(images_u, weak_view), both(images_x, strong_view), both(images_u, strong_view)
    )


def draw_mixing(rows: int, alpha: float, draws: random.Random, device: torch.device) -> Mixing:
    """A weight from Beta(alpha, alpha) on the larger side, and a random permutation of `rows`."""
    share = draws.betavariate(alpha, alpha)
    order = list(range(rows))
    draws.shuffle(order)
    return Mixing(max(share, 1 - share), torch.tensor(order, device=device))


def _probs(network: Student, views: Tensor) -> Tensor:
    return network.classify(views).softmax(dim=1)


def _sharp(probs: Tensor, temperature: float) -> Tensor:
    powers = probs ** (1 / temperature)
    return powers / powers.sum(dim=1, keepdim=True)
