"""What a frozen backbone sees of images and of views of them, computed once and kept: `features/<split>/` of a run.

A part holds `row` (number), `plain` (F numbers of the image itself) and, of the pool, `views` (V times F: half weak,
half strong), all float16. It is made of a stretch of one part of `rows/<split>/`, after which it is named, and is whole
or absent; so the list of files says what is still to be done. The annotator's embeddings are copied part by part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from coreg_ray.annotation.arrow import matrix, read_table, write_table
from coreg_ray.config.student import ANNOTATOR
from coreg_ray.errors import UserError
from coreg_ray.ids import row_numbers
from coreg_ray.images.paper_sets import explicit_student
from coreg_ray.pure.rng import stream, uniform
from coreg_ray.pure.views.augment import STRONG_DRAWS, WEAK_DRAWS, Policy, strong, weak
from coreg_ray.run.features import FeaturesManifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coreg_ray.config import Config
    from coreg_ray.run.features import BackboneCard
    from coreg_ray.run.folder import RunFolder
    from coreg_ray.run.storage import Folder
    from coreg_ray.training.backbone import Backbone

PART_ROWS = 128  # images in a part, the unit that a crash loses
_PASS = {"cpu": 64}  # images that pass through the backbone together
_ACCELERATOR_PASS = 512
_LARGEST = 65504.0  # in float16


@dataclass(frozen=True)
class Stretch:
    """Consecutive rows of one part of `rows/<split>/`: the name of the part and the first of at most PART_ROWS rows."""

    part: str
    start: int

    @property
    def name(self) -> str:
        """The part of features that is made of it."""
        return f"{self.part.removesuffix('.parquet')}.{self.start:06d}.parquet"


@torch.inference_mode()
def features_of(
    pixels: Tensor, numbers: Tensor, backbone: Backbone, manifest: FeaturesManifest, views: bool = True
) -> Tensor:
    """What the backbone sees of n images and, with `views`, of the views that the manifest describes.

    pixels (n, S, S, 3) uint8, numbers (n,) of the rows -> (n, 1 + V, F) float16 on the host: the image, weak views,
    strong views. A row's features depend on itself alone, whatever stands beside it.
    """
    images = pixels.permute(0, 3, 1, 2).to(backbone.pixel_mean.device)
    shown = [images]
    for view in range(manifest.views // 2 if views else 0):
        draws = uniform(stream(manifest.seed, "features", "weak", view), numbers, WEAK_DRAWS)
        shown.append(weak(images, draws, flip=manifest.flip))
    for view in range(manifest.views // 2 if views else 0):
        draws = uniform(stream(manifest.seed, "features", "strong", view), numbers, STRONG_DRAWS)
        shown.append(strong(images, draws, flip=manifest.flip, policy=cast(Policy, manifest.policy)))
    together = torch.cat(shown).contiguous(memory_format=torch.channels_last)
    at_once, seen = _PASS.get(images.device.type, _ACCELERATOR_PASS), []
    for block in together.split(at_once):
        room = block.new_zeros(at_once - len(block), *block.shape[1:])  # arithmetic may follow the size of a batch
        features = backbone(torch.cat([block, room]))[: len(block)]
        seen.append(features.clamp(-_LARGEST, _LARGEST).half().cpu())
    return torch.cat(seen).view(len(shown), len(pixels), -1).transpose(0, 1).contiguous()


def make_part(
    stretch: Stretch, rows: Folder, features: Folder, backbone: Backbone, manifest: FeaturesManifest, views: bool
) -> int:
    """Compute one part of features and write it; returns its rows. `rows`, `features`: folders of one split."""
    table = read_table(rows, stretch.part, ["row", "image"]).slice(stretch.start, PART_ROWS)
    side = manifest.backbone.resolution
    content = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8)
    if content.size != len(table) * side * side * 3:
        raise UserError(f"{rows.path} does not hold {side} px images; remove it and give the command again")
    pixels, numbers = torch.from_numpy(content.reshape(-1, side, side, 3).copy()), table["row"].to_numpy()
    made = features_of(pixels, torch.from_numpy(numbers.copy()), backbone, manifest, views)
    _write(features, stretch.name, numbers, made.numpy())
    return len(table)


def copy_part(part: str, embeddings: Folder, features: Folder) -> int:
    """Make a part of features of one of an annotator's table; returns its rows."""
    table = read_table(embeddings, part, ["image_id", "embedding"])
    numbers = row_numbers(table["image_id"].to_pylist())
    _write(features, Stretch(part, 0).name, numbers, matrix(table["embedding"], np.float16)[:, None])
    return len(table)


def _write(folder: Folder, name: str, numbers: NDArray[np.int64], made: NDArray[np.float16]) -> None:
    """A part of features: numbers (n,), made (n, 1 + V, F)."""
    columns = {"row": pa.array(numbers), "plain": _binary(made[:, 0])}
    if made.shape[1] > 1:
        columns["views"] = _binary(made[:, 1:])
    write_table(folder, name, pa.table(columns))


def _binary(values: NDArray[np.float16]) -> pa.FixedSizeBinaryArray:
    size = int(np.prod(values.shape[1:])) * 2
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(values), [None, buffer])


def count_rows(part: str, folder: Folder) -> tuple[str, int]:
    """The name of a part, and how many rows it has."""
    return part, read_table(folder, part, ["row"]).num_rows


def names_of(counts: dict[str, int]) -> set[str]:
    """The parts of features that parts with so many rows come to."""
    return {Stretch(part, start).name for part, count in counts.items() for start in range(0, count, PART_ROWS)}


def stretches(counts: dict[str, int], features: Folder) -> list[Stretch]:
    """What is still to be made of parts with so many rows; removes features of parts that are none any more."""
    asked = [Stretch(part, start) for part, count in sorted(counts.items()) for start in range(0, count, PART_ROWS)]
    there = {name for name in features.entries() if name.endswith(".parquet")}
    for name in there - {stretch.name for stretch in asked}:
        features.delete(name)
    return [stretch for stretch in asked if stretch.name not in there]


def manifest_for(config: Config, card: BackboneCard, given: str) -> FeaturesManifest:
    """Which features a configuration asks for; the annotator's embeddings have no views."""
    student = explicit_student(config)
    if card.name == ANNOTATOR:
        return FeaturesManifest(card, given, views=0, seed=0, flip=False, policy="none")
    policy = "randaugment" if student.views == "auto" else student.views
    return FeaturesManifest(card, given, student.frozen_views, config.seed, student.flip is not False, policy)


def kept_features(config: Config, run: RunFolder) -> FeaturesManifest | None:
    """Which features a run with heads learns from; None where its networks look at pixels.

    Their views may have been drawn by another seed: runs over several seeds share them.

    Raises:
        UserError: there are none, or those of another backbone or of other views.
    """
    if not config.student.on_features:
        return None
    there = run.read_features_manifest()
    if there is None:
        raise UserError(f"{run.path} has no features/; give the command coreg-ray pipeline, which makes them")
    asked = manifest_for(config, there.backbone, there.given)
    name, resolution = config.student.name, config.student.resolution
    differences = [entry for entry in there.differences(asked) if not entry.startswith("seed ")]
    if there.backbone.name != name:
        differences.append(f"name {there.backbone.name}, not {name}")
    if name != ANNOTATOR and there.backbone.resolution != resolution:
        differences.append(f"resolution {there.backbone.resolution}, not {resolution}")
    if differences:
        raise other_features(run, differences)
    return there


def other_features(run: RunFolder, differences: list[str]) -> UserError:
    """What to say of features that are not those asked for."""
    return UserError(
        f"{run.features.path} holds features of another backbone or of other views ({'; '.join(differences)}); remove "
        "that folder, and the same command makes them anew, or choose another --output"
    )
