"""What both networks of a finished run say about its images: class, confidence, and belief in a class given."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from torch import Tensor
from torch.nn import functional as F

from coreg_ray.config import StudentConfig
from coreg_ray.deploy.model import inputs_of, new_network
from coreg_ray.metrics import NETWORKS
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint
from coreg_ray.training.manifest import network_file, read_file
from coreg_ray.training.networks import Student

BATCH = 128


@dataclass(frozen=True)
class Pair:
    """Both trained networks of a run.

    Attributes:
        checkpoint: what the checkpoint that they come from says of itself.
    """

    a: Student
    b: Student
    student: StudentConfig
    class_names: list[str]
    checkpoint: dict[str, Any]

    @classmethod
    def of(cls, run: RunFolder) -> Pair | None:
        """From the newest whole checkpoint of a run folder, on the GPU if there is one; None without a checkpoint."""
        newest = checkpoint.newest(run.checkpoints)
        if newest is None:
            return None
        description = checkpoint.describe(newest)
        student, class_names = StudentConfig.model_validate(description["student"]), list(description["classes"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        a, b = (_trained(newest, name, student, len(class_names)).to(device) for name in NETWORKS)
        return cls(a, b, student, class_names, description)

    def logits(self, inputs: Tensor) -> Tensor:
        """`Sample.inputs` on the host -> (2, M, K) float32 on the host, network a first."""
        return self.look(inputs)[0]

    @torch.inference_mode()
    def look(self, inputs: Tensor, seconds: float = math.inf) -> tuple[Tensor, Tensor]:
        """`Sample.inputs` on the host -> logits (2, m, K), network a first, and features (m, F), all on the host.

        The features of both networks stand side by side, together a unit vector, so that their products say how alike
        two images are to the networks. m is M, or what was done when `seconds` were over: one batch at least.
        """
        device, kept = self.a.device, torch.channels_last if inputs.dim() == 4 else torch.preserve_format
        logits, features = (
            [torch.empty(2, 0, len(self.class_names))],
            [torch.empty(0, 2 * self.a.classifier.in_features)],
        )
        deadline = time.monotonic() + seconds
        for block in inputs.split(BATCH):
            if len(logits) > 1 and time.monotonic() > deadline:
                break
            block = block.to(device, memory_format=kept)
            seen = [network.encode(block) for network in (self.a, self.b)]
            both = [network.classifier(own).float() for network, own in zip((self.a, self.b), seen, strict=True)]
            logits.append(torch.stack(both).cpu())
            features.append(torch.cat([F.normalize(own.float(), dim=1) for own in seen], dim=1).cpu() / math.sqrt(2))
        return torch.cat(logits, dim=1), torch.cat(features)


@dataclass(frozen=True)
class Judgement:
    """Both networks on M images; the first axis of length 3 is: both together, a, b.

    Attributes:
        best: (3, M) classes. confidence: (3, M) their probabilities.
        given: (M,) a class to compare with (a label, the annotator's choice), -1 where none.
        belief: (3, M) the probability of `given`, 0 where none.
        margin: (M,) how far the best logit of both together lies above the next.
    """

    best: NDArray[np.int64]
    confidence: NDArray[np.float32]
    given: NDArray[np.int64]
    belief: NDArray[np.float32]
    margin: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.given)

    def where(self, mask: NDArray[np.bool_]) -> Judgement:
        """The images for which mask (M,) is true."""
        return Judgement(*(getattr(self, field.name)[..., mask] for field in fields(self)))

    @classmethod
    def of(cls, logits: Tensor, given: Tensor, temperature: float = 1.0) -> Judgement:
        """From logits (2, M, K) of networks a and b, and the classes (M,) int64 to compare with."""
        both = torch.cat([logits.mean(dim=0, keepdim=True), logits])  # (3, M, K)
        probs = (both / temperature).softmax(dim=2)
        confidence, best = probs.max(dim=2)
        belief = probs.gather(2, given.clamp(min=0).expand(3, -1)[:, :, None])[:, :, 0] * (given >= 0)
        first, second = both[0].topk(2, dim=1).values.unbind(dim=1)
        return cls(best.numpy(), confidence.numpy(), given.numpy(), belief.numpy(), (first - second).numpy())


def _trained(folder: Folder, name: str, student: StudentConfig, num_classes: int) -> Student:
    """Network `a` or `b` of a checkpoint in evaluation mode, without its projection head."""
    tensors = load_tensors(read_file(folder, network_file(name)))
    own = {key.removeprefix("student."): tensor for key, tensor in tensors.items() if key.startswith("student.")}
    network = new_network(student, num_classes, inputs_of(own))
    network.load_state_dict({key: tensor for key, tensor in own.items() if not key.startswith("projector.")})
    return network.eval()
