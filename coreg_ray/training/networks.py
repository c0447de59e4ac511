"""The student network, its key encoder, the queue of keys and the prototypes.

Sources: pre-activation ResNet (He et al., arXiv 1603.05027) as the paper's authors size it for 32 px; momentum encoder
and queue after MoCo (arXiv 1911.05722); METHOD: sections 4 and 5.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coreg_ray.errors import UserError
from coreg_ray.training.preact_resnets import PREACT_RESNETS
from coreg_ray.training.timm_models import batch_norms, normalisation, timm_encoder

if TYPE_CHECKING:
    from coreg_ray.config import StudentConfig

__all__ = [
    "HeadStudent",
    "PreActResNet",
    "Queue",
    "Student",
    "build_student",
    "follow",
    "pack",
    "unpack",
]


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU; the shortcut starts after the first activation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, padding=1, bias=False)
        changes_shape = stride != 1 or inputs != outputs
        self.stride = stride
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x), inplace=True)  # what batch norm returns is nobody else's
        shortcut = x
        if self.shortcut is not None:
            # Every stride-th pixel and then a dense 1x1 convolution: the same as a strided one, whose backward pass
            # crashes oneDNN with few channels, an odd batch and several threads (torch 2.15).
            shortcut = self.shortcut(activated[:, :, :: self.stride, :: self.stride])
        return self.conv2(F.relu(self.norm2(self.conv1(activated)), inplace=True)).add_(shortcut)


class PreActResNet(nn.Module):
    """(B, 3, S, S) -> (B, 8 * width) features; the first stage halves the resolution from 64 px on.

    Args:
        depth: blocks in each of the four stages: 2 in the ResNet-18, 1 in the ResNet-10.
    """

    def __init__(self, width: int = 64, resolution: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.num_features = 8 * width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        blocks = []
        inputs = width
        for stage, stride in enumerate((2 if resolution >= 64 else 1, 2, 2, 2)):
            outputs = width * 2**stage
            for block in range(depth):
                blocks.append(PreActBlock(inputs, outputs, 1 if block else stride))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean(dim=(2, 3))


class Student(nn.Module):
    """Encoder, linear classifier and projection head; takes raw pixels, so normalisation belongs to the model.

    Attributes:
        pixel_mean, pixel_std: (3,) mean and standard deviation of the training images, in 0..255; or those that a
            pretrained encoder was trained with.
        own_statistics: whether they are the encoder's own.
        projection: D, how many numbers z has.
        keeps_statistics: whether the encoder's batch-norm statistics stay as they are, in training too.
        held: whether the whole encoder stays as it is for now, so that only what is behind it learns.
        passes: of images so far, forward, one with gradient counting as three: about what its way back costs.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, encoder: nn.Module, features: int, num_classes: int, projection: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(features, num_classes)
        self.projector = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, projection))
        self.own_statistics = False
        self.projection = projection
        self.keeps_statistics = self.held = False
        self._holds: list[nn.Parameter] = []
        self.passes = 0
        self._register_statistics()

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) uint8 or float in 0..255 -> logits (B, K) and unit features z (B, D), both float32."""
        rows = len(inputs)
        if self.training and rows == 1:  # batch norm refuses a single value per channel, so the row is seen twice
            inputs = inputs.expand(2, *inputs.shape[1:])
        features = self.encode(inputs)
        logits = self.classifier(features).float()
        return logits[:rows], F.normalize(self.projector(features).float(), dim=1)[:rows]

    def train(self, mode: bool = True) -> Student:
        """As every module's, but what is held or keeps its statistics sees images as in evaluation mode."""
        super().train(mode)
        if self.held:
            self.encoder.eval()
        elif self.keeps_statistics:
            for norm in batch_norms(self.encoder):
                norm.eval()
        return self

    def hold(self, held: bool) -> None:
        """Let the encoder stay as it is from now on, or let it learn."""
        if held == self.held:
            return
        if held:  # some models have weights that never learn
            self._holds = [weight for weight in self.encoder.parameters() if weight.requires_grad]
        for weight in self._holds:
            weight.requires_grad_(not held)
        self.held = held
        self.train(self.training)

    def classify(self, inputs: Tensor) -> Tensor:
        """Logits alone: (B, 3, S, S) in 0..255 -> (B, K), the deployed half of the network."""
        return self.classifier(self.encode(inputs)).float()

    def encode(self, inputs: Tensor) -> Tensor:
        """(B, 3, S, S) in 0..255 -> what the classifier sees of them, (B, H)."""
        self._count(inputs)
        return self.encoder((inputs.float() - self.pixel_mean.view(3, 1, 1)) / self.pixel_std.view(3, 1, 1))

    def _count(self, inputs: Tensor) -> None:
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):  # an exported program counts nothing
            self.passes += len(inputs) * (3 if torch.is_grad_enabled() and not self.held else 1)

    def normalise_by(self, mean: Tensor, deviation: Tensor) -> None:
        """Take the statistics of the training images, unless the encoder has its own."""
        if not self.own_statistics:
            self.pixel_mean.copy_(mean)
            self.pixel_std.copy_(deviation)

    @property
    def device(self) -> torch.device:
        return self.classifier.weight.device

    def _register_statistics(self) -> None:
        self.register_buffer("pixel_mean", torch.full((3,), 127.5))
        self.register_buffer("pixel_std", torch.full((3,), 64.0))


class HeadStudent(Student):
    """A student whose inputs are the features of a frozen backbone, (B, F) instead of pixels: one hidden layer.

    Attributes:
        feature_mean, feature_std: (F,) of the training images' features.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, inputs: int, hidden: int, num_classes: int, projection: int) -> None:
        super().__init__(nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU()), hidden, num_classes, projection)

    def encode(self, inputs: Tensor) -> Tensor:
        """(B, F) -> what the classifier sees of them, (B, H)."""
        self._count(inputs)
        return self.encoder((inputs.float() - self.feature_mean) / self.feature_std)

    def normalise_by(self, mean: Tensor, deviation: Tensor) -> None:
        """Take the statistics of the training images' features."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(deviation)

    def _register_statistics(self) -> None:
        inputs = self.encoder[0].in_features  # type: ignore[index]  # it is the Sequential of above
        self.register_buffer("feature_mean", torch.zeros(inputs))
        self.register_buffer("feature_std", torch.ones(inputs))


def build_student(config: StudentConfig, num_classes: int, features: int | None = None) -> Student:
    """A freshly initialised student; seed torch's generator first (`torch.random.fork_rng`).

    Args:
        features: F, where the student is a head over a frozen backbone's features.

    Raises:
        UserError: timm knows no model of that name, or its weights cannot be had.
    """
    if config.on_features:
        assert features is not None
        return HeadStudent(features, 8 * config.width, num_classes, config.projection)
    if config.name in PREACT_RESNETS:
        if config.pretrained:
            raise UserError(
                f"student.pretrained={config.pretrained} needs a timm model; {config.name} has no published weights"
            )
        encoder: nn.Module = PreActResNet(config.width, config.resolution, PREACT_RESNETS[config.name])
        outputs = 8 * config.width
    else:
        encoder, outputs = timm_encoder(config)
    student = Student(encoder, outputs, num_classes, config.projection)
    student.keeps_statistics = config.batch_norm == "frozen"
    if config.pretrained:
        student.normalise_by(*normalisation(encoder))
        student.own_statistics = True
    return student.train().to(memory_format=torch.channels_last)


class Queue:
    """The newest `size` keys with their pseudo-class and confidence; slots not yet filled are marked invalid.

    Attributes:
        keys: (Q, D) unit features. classes: (Q,) int64. confident, valid: (Q,) bool.
        position: the slot that is written next.
    """

    def __init__(self, size: int, dimension: int, device: torch.device | str = "cpu") -> None:
        self.keys = torch.zeros(size, dimension, device=device)
        self.classes = torch.zeros(size, dtype=torch.int64, device=device)
        self.confident = torch.zeros(size, dtype=torch.bool, device=device)
        self.valid = torch.zeros(size, dtype=torch.bool, device=device)
        self.position = 0

    def __len__(self) -> int:
        return len(self.keys)

    def push(self, keys: Tensor, classes: Tensor, confident: Tensor) -> None:
        """Write A entries over the oldest ones: keys (A, D), classes (A,), confident (A,)."""
        size, entries = len(self), len(keys)
        if size == 0 or entries == 0:
            return
        kept = min(size, entries)
        slots = (torch.arange(kept, device=keys.device) + self.position) % size
        self.keys[slots] = keys[-kept:]
        self.classes[slots] = classes[-kept:]
        self.confident[slots] = confident[-kept:]
        self.valid[slots] = True
        self.position = (self.position + kept) % size


@torch.no_grad()
def follow(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """key <- momentum * key + (1 - momentum) * query, for weights and batch-norm buffers alike (METHOD: section 4)."""
    torch._foreach_lerp_(_floats(key), _floats(query), 1 - momentum)


def compiled(network: Student) -> Student:
    """The same network, its encoder run by `torch.compile`: once for every shape and mode that it meets, in place."""
    network.encoder.compile()
    return network


def frozen_copy(network: Student) -> Student:
    """A copy in evaluation mode whose weights take no gradient; compiled if the network is."""
    frozen = copy.deepcopy(network).eval().requires_grad_(False)
    frozen.passes, frozen.held = 0, False
    is_compiled = network.encoder._compiled_call_impl is not None  # which a copy leaves behind
    return compiled(frozen) if is_compiled else frozen


@torch.no_grad()
def pack(network: nn.Module) -> Tensor:
    """All floating-point weights and buffers as one flat float32 tensor: what travels at an exchange."""
    return torch.cat([tensor.reshape(-1).float() for tensor in _floats(network)])


@torch.no_grad()
def unpack(flat: Tensor, network: nn.Module) -> None:
    """The inverse of `pack`, in place."""
    tensors = _floats(network)
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def _floats(network: nn.Module) -> list[Tensor]:
    return [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]
