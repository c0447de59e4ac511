"""How fast this machine trains: a few steps on a few images, before anything long begins. Ray-free.

Three short epochs of the real loop: warm-up, the method without the contrastive branch, and with it. What comes of the
networks is thrown away.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

import torch
from torch import Tensor

from coreg_ray import metrics
from coreg_ray.config import Config, MethodConfig
from coreg_ray.images.paper_sets import explicit_student
from coreg_ray.pure.label_free import ENOUGH, VIEWS
from coreg_ray.pure.rng import generator
from coreg_ray.training.evaluate import SETTLED, Scored
from coreg_ray.training.fit import fit
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Method
from coreg_ray.training.networks import pack
from coreg_ray.training.rows import make_rows
from coreg_ray.training.state import build_state

BATCHES = 6  # of rows in a measured epoch: enough that both sides of a batch are full
LARGEST = 64  # rows in a measured batch; a row costs hardly less in larger ones
CLEAN = 0.75  # share of the rows that a network finds sound, of methods that split them: 0.5 to 0.95 were seen


@dataclass(frozen=True)
class Pace:
    """Seconds that one row takes, both networks together as they share this machine.

    Attributes:
        warmup: in a step of the warm-up. plain, contrast: a labelled row, and what goes with it, in a step without and
            with the contrastive branch. look: to be classified once. labelled: share of the rows that an epoch after
            warm-up has steps for. memory: bytes of this process at its peak, the measured images among them.
            parameters: bytes of one network.
    """

    warmup: float
    plain: float
    contrast: float
    look: float
    labelled: float
    memory: int
    parameters: int

    def seconds(self, method: MethodConfig, rows: int, tested: int, held_out: int) -> float:
        """What a whole training takes.

        Args:
            rows: that are trained on. tested: labelled test images. held_out: images of the criteria.
        """
        warmup = method.warmup_epochs
        late = max(0, method.epochs - warmup - method.contrast_delay - 1)
        early = method.epochs - warmup - late
        shown = max(held_out, min(ENOUGH, rows))
        looks = method.epochs * (tested + held_out) + SETTLED * (shown * (1 + VIEWS) - held_out)
        looks += (early + late + (early + late > 0)) * rows  # assessments; the first one twice
        steps = rows * (warmup * self.warmup + self.labelled * (early * self.plain + late * self.contrast))
        return steps + looks * self.look


def measure(config: Config, method: Method, inputs: Tensor, numbers: Tensor, num_classes: int) -> Pace:
    """Train on a few images for three epochs, with candidate sets that are drawn at random.

    Args:
        config: its method whole. method: a module of `methods/`. inputs: (n, S, S, 3) uint8 pixels, or (n, 1 + V, F)
            float16 features. numbers: (n,) of the rows. num_classes: K.
    """
    size = min(LARGEST, config.method.whole().batch_size)
    given = {"epochs": 3, "warmup_epochs": 1, "contrast_delay": 0, "batch_size": size, "warmup_batch_size": size}
    schedule = config.method.whole().model_copy(update={**given, "ramp_epochs": 0, "learning_rate": 1e-4})
    count, random = BATCHES * size, generator(0)
    index = torch.arange(count) % len(inputs)
    candidates = torch.rand(count, num_classes, generator=random) < 1 / num_classes
    candidates[torch.arange(count), torch.randint(num_classes, (count,), generator=random)] = True
    pixels = torch.zeros(count, 0, 0, 3, dtype=torch.uint8) if inputs.dim() == 3 else inputs[index]
    features = inputs[index] if inputs.dim() == 3 else None
    rows = make_rows(numbers[index] + torch.arange(count), pixels, candidates, features=features)
    mesh = Mesh("cuda" if torch.cuda.is_available() else "cpu")
    names = [str(number) for number in range(num_classes)]
    state = build_state(schedule, explicit_student(config), 0, names, rows, mesh, method.remember)
    warmup, plain, contrast = (epoch.metrics for epoch in fit(state, rows, Scored(), mesh, method))
    splits = metrics.of(metrics.CLEAN, "a") in plain
    clean = [max(_mean(epoch, metrics.CLEAN) * count, size) if splits else count for epoch in (plain, contrast)]
    return Pace(
        warmup=float(warmup[metrics.TRAIN_EPOCH_S]) / count,
        plain=float(plain[metrics.TRAIN_EPOCH_S]) / clean[0],
        contrast=float(contrast[metrics.TRAIN_EPOCH_S]) / clean[1],
        look=float(contrast.get(metrics.ASSESS_S, 0.0)) / count,
        labelled=CLEAN if splits else 1.0,
        memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        parameters=pack(state.learners[0].student).nbytes,
    )


def _mean(figures: dict[str, float | str], name: str) -> float:
    values = [float(figures[metrics.of(name, network)]) for network in metrics.NETWORKS]
    return sum(values) / len(values)
