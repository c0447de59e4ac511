"""What a frozen backbone sees is computed once: which views, in which files, by whose weights, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import frozen_toy
import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
import toy
from frozen_toy import CARD, MANIFEST, STUDENT
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from coreg_ray.annotation.arrow import read_table, write_table
from coreg_ray.annotation.parts import Part, annotation_table
from coreg_ray.config import StudentConfig
from coreg_ray.errors import UserError
from coreg_ray.ids import row_numbers
from coreg_ray.images.decode import Fit, upright_rgb
from coreg_ray.pure.rng import stream, uniform
from coreg_ray.pure.views.augment import STRONG_DRAWS, WEAK_DRAWS, strong, weak
from coreg_ray.run.features import BackboneCard
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder
from coreg_ray.training.backbone import WEIGHTS, Backbone, digest_of, given_by, read_backbone, timm_backbone
from coreg_ray.training.features import PART_ROWS, Stretch, copy_part, features_of, make_part, stretches
from coreg_ray.training.read_rows import Selection, load_images, load_rows
from coreg_ray.training.timm_models import timm_encoder


def pictures(count: int = 7) -> tuple[Tensor, Tensor]:
    """Pixels (count, S, S, 3) and row numbers (count,)."""
    return toy.images(count, 3)[0], torch.arange(count) * 1000 + 5


# One image and its views.


def test_features_are_those_of_the_image_of_weak_and_of_strong_views() -> None:
    pixels, numbers = pictures()
    network = frozen_toy.backbone()
    made = features_of(pixels, numbers, network, MANIFEST)
    assert (made.shape, made.dtype) == ((7, 1 + frozen_toy.VIEWS, frozen_toy.FEATURES), torch.float16)
    images, shown = pixels.permute(0, 3, 1, 2), []
    for view in range(2):
        shown.append(weak(images, uniform(stream(0, "features", "weak", view), numbers, WEAK_DRAWS)))
    for view in range(2):
        shown.append(strong(images, uniform(stream(0, "features", "strong", view), numbers, STRONG_DRAWS)))
    for place, view_of in enumerate([images, *shown]):
        torch.testing.assert_close(made[:, place].float(), network(view_of), atol=2e-3, rtol=1e-3)
    assert not torch.equal(made[:, 1], made[:, 2])


def test_features_of_test_images_are_those_of_the_image_alone() -> None:
    pixels, numbers = pictures()
    network = frozen_toy.backbone()
    alone = features_of(pixels, numbers, network, MANIFEST, views=False)
    assert torch.equal(alone, features_of(pixels, numbers, network, MANIFEST)[:, :1])


def test_a_rows_features_do_not_depend_on_its_neighbours() -> None:
    pixels, numbers = pictures(30)
    network = timm_backbone(STUDENT, 0)
    whole = features_of(pixels, numbers, network, MANIFEST)
    assert torch.equal(features_of(pixels[4:5], numbers[4:5], network, MANIFEST)[0], whole[4])


def test_views_follow_the_seed_and_what_the_source_bears() -> None:
    pixels, numbers = pictures()
    network = frozen_toy.backbone()
    made = features_of(pixels, numbers, network, MANIFEST)
    for other in ({"seed": 1}, {"flip": False}, {"policy": "hole"}, {"policy": "weak"}):
        again = features_of(pixels, numbers, network, replace(MANIFEST, **other))
        assert torch.equal(again[:, 0], made[:, 0])
        assert not torch.equal(again, made)


def test_a_feature_beyond_half_precision_is_the_largest_there_is() -> None:
    pixels, numbers = pictures(2)
    huge = Backbone(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), _Times(1e9)), CARD)
    assert features_of(pixels, numbers, huge, replace(MANIFEST, views=0)).isfinite().all()


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_a_backbone_never_trains() -> None:
    network = timm_backbone(STUDENT, 0)
    network.train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


# Files.


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.at(frozen_toy.prepared(tmp_path / "run", toy.toy(140)).output)


def test_parts_are_stretches_of_parts_of_rows(run: RunFolder) -> None:
    assert (run.features / "pool").entries() == ["part.000000.parquet", f"part.{PART_ROWS:06d}.parquet"]
    tables = [read_table(run.features / "pool", name) for name in (run.features / "pool").entries()]
    assert [len(table) for table in tables] == [128, 12]
    assert tables[0].column_names == ["row", "plain", "views"]
    assert read_table(run.features / "test", "part.000000.parquet").column_names == ["row", "plain"]
    stored = read_table(run.rows("pool"), "part.parquet")["row"]
    assert pa.concat_tables(tables)["row"].to_pylist() == stored.to_pylist()


def test_what_is_missing_is_made_again_and_alike(run: RunFolder) -> None:
    manifest, features = run.read_features_manifest(), run.features / "pool"
    assert manifest is not None
    second = f"part.{PART_ROWS:06d}.parquet"
    before = features.read(second)
    counts = {"part.parquet": 140}
    assert stretches(counts, features) == []
    features.delete(second)
    assert stretches(counts, features) == [Stretch("part.parquet", PART_ROWS)]
    network = read_backbone(run.features, manifest.backbone)
    made = make_part(Stretch("part.parquet", PART_ROWS), run.rows("pool"), features, network, manifest, True)
    assert made == 12
    assert features.read(second) == before


def test_features_of_rows_that_are_gone_are_removed(run: RunFolder) -> None:
    features = run.features / "pool"
    assert stretches({"thinned.parquet": 100}, features) == [Stretch("thinned.parquet", 0)]
    assert features.entries() == []


def test_features_are_read_back_in_the_order_of_numbers(run: RunFolder) -> None:
    manifest = run.read_features_manifest()
    assert manifest is not None
    network = read_backbone(run.features, manifest.backbone)
    for limit in (1e9, 0):  # in memory, memory-mapped
        rows = load_rows(run, 4, toy.SIDE, Selection(), limit, manifest)
        pixels = load_rows(run, 4, toy.SIDE, Selection(), limit)
        assert torch.equal(rows.numbers, pixels.numbers)
        assert torch.equal(rows.indices, pixels.indices)
        expected = features_of(pixels.pixels.clone(), pixels.numbers, network, manifest)
        assert rows.features is not None
        assert torch.equal(rows.features, expected)
        test = load_images(run, "test", toy.SIDE, Selection(), limit, manifest)
        assert test.features is not None
        assert test.features.shape[1] == 1
        assert test.labels is not None
        half = load_rows(run, 4, toy.SIDE, Selection(1, 2), limit, manifest)
        assert half.features is not None
        assert torch.equal(half.features, expected[rows.numbers % 2 == 1])


def test_features_of_another_size_are_refused(run: RunFolder) -> None:
    manifest = run.read_features_manifest()
    assert manifest is not None
    other = replace(manifest, views=8)
    with pytest.raises(UserError, match=r"features/pool does not hold 9 times \d+ features an image; remove it"):
        load_images(run, "pool", toy.SIDE, Selection(), 1e9, other)


def test_rows_of_another_size_are_refused(run: RunFolder) -> None:
    manifest = run.read_features_manifest()
    assert manifest is not None
    larger = replace(manifest, backbone=replace(manifest.backbone, resolution=16))
    with pytest.raises(UserError, match="does not hold 16 px images"):
        make_part(Stretch("part.parquet", 0), run.rows("pool"), run.features / "x", frozen_toy.backbone(), larger, True)


def test_embeddings_are_copied_as_they_are(tmp_path: Path) -> None:
    ids, embedding = ["a", "b", "c"], np.random.default_rng(0).normal(size=(3, 6)).astype(np.float16)
    name = Part(0, "0" * 16, "1" * 8).name
    votes = np.zeros((3, 2), np.int32)
    write_table(Folder.at(tmp_path / "from"), name, annotation_table(ids, ["0" * 32] * 3, "clip", votes, embedding))
    assert copy_part(name, Folder.at(tmp_path / "from"), Folder.at(tmp_path / "to")) == 3
    (made,) = Folder.at(tmp_path / "to").entries()
    table = read_table(Folder.at(tmp_path / "to"), made)
    assert table["row"].to_pylist() == row_numbers(ids).tolist()
    content = np.frombuffer(b"".join(table["plain"].to_pylist()), np.float16).reshape(3, 6)
    np.testing.assert_array_equal(content, embedding)


# Weights.


def test_weights_are_known_by_their_content(tmp_path: Path) -> None:
    network, other = timm_backbone(STUDENT, 0), timm_backbone(STUDENT, 1)
    assert network.card.weights == digest_of(network.encoder) == timm_backbone(STUDENT, 0).card.weights
    assert network.card.weights != other.card.weights
    save_file(network.weights(), tmp_path / "one.safetensors")
    local = STUDENT.model_copy(update={"pretrained": str(tmp_path / "one.safetensors")})
    again = timm_backbone(local, 7)
    assert again.card.weights == network.card.weights
    given = given_by(local, 0)
    save_file(other.weights(), tmp_path / "one.safetensors")
    assert given_by(local, 0) != given  # the same path with another content
    assert given_by(STUDENT, 0) != given_by(STUDENT, 1)


def test_a_random_backbone_says_so(caplog: pytest.LogCaptureFixture) -> None:
    timm_backbone(STUDENT, 0)
    assert "the features are those of a random test_efficientnet; give `hub` or a file" in caplog.text


def test_other_weights_in_the_folder_are_noticed(run: RunFolder) -> None:
    manifest = run.read_features_manifest()
    assert manifest is not None
    other = timm_backbone(STUDENT, 9)
    save_file(other.weights(), Path(run.features.path) / WEIGHTS)
    with pytest.raises(UserError, match="holds other weights than the features were made with; remove that folder"):
        read_backbone(run.features, manifest.backbone)
    run.features.write(WEIGHTS, b"nothing")
    with pytest.raises(UserError, match=f"{WEIGHTS} cannot be read"):
        read_backbone(run.features, manifest.backbone)


def test_the_fingerprint_is_of_backbone_weights_size_views_and_seed() -> None:
    fingerprints = [
        replace(MANIFEST, **other).fingerprint
        for other in ({}, {"views": 8}, {"seed": 3}, {"flip": False}, {"policy": "hole"}, {"given": "elsewhere"})
    ] + [
        replace(MANIFEST, backbone=replace(CARD, **other)).fingerprint
        for other in ({"weights": "x"}, {"name": "x"}, {"resolution": 3}, {"mean": [0.1] * 3})
    ]
    assert fingerprints[5] == fingerprints[0]  # where weights come from does not matter
    assert len(set(fingerprints)) == len(fingerprints) - 1


def test_its_own_mean_and_deviation() -> None:
    network = timm_backbone(STUDENT, 0)
    known: Any = timm.create_model("test_efficientnet").pretrained_cfg
    torch.testing.assert_close(network.pixel_mean, 255 * torch.tensor(known["mean"]))
    torch.testing.assert_close(network.pixel_std, 255 * torch.tensor(known["std"]))
    pixels = pictures(2)[0].permute(0, 3, 1, 2)
    by_hand = (pixels.float() / 255 - torch.tensor(known["mean"])[:, None, None]) / torch.tensor(known["std"])[
        :, None, None
    ]
    torch.testing.assert_close(network(pixels), network.encoder(by_hand), atol=1e-4, rtol=1e-4)


def test_grey_images_are_seen_as_grey_ones_of_three_channels() -> None:
    grey = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20))
    pixels = torch.from_numpy(Fit.square(toy.SIDE)(upright_rgb(grey)).copy())[None]
    assert torch.equal(pixels[..., 0], pixels[..., 2])
    assert features_of(pixels, torch.zeros(1, dtype=torch.int64), frozen_toy.backbone(), MANIFEST).isfinite().all()


# What is refused.


def refusal(name: str = "test_resnet", **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        timm_encoder(StudentConfig.model_validate({"name": name, "resolution": 32, "frozen": True, **settings}))
    return str(error.value)


def saved(path: Path, name: str, **settings: Any) -> str:
    save_file(timm.create_model(name, **settings).state_dict(), path)
    return str(path)


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    path = saved(tmp_path / "other.safetensors", "test_efficientnet")
    assert "of the same architecture" in refusal(pretrained=path)


def test_weights_of_a_deeper_model_of_the_same_family(tmp_path: Path) -> None:
    weights = timm.create_model("test_resnet").state_dict()
    last = [name for name in weights if name.startswith("layer4.0.")]
    save_file(
        weights | {name.replace("layer4.0.", "layer4.1."): weights[name].clone() for name in last},
        tmp_path / "deeper.safetensors",
    )
    message = refusal(pretrained=str(tmp_path / "deeper.safetensors"))
    assert f"holds {len(last)} tensors that the model lacks (layer4.1." in message


@pytest.mark.parametrize(("channels", "kind"), [(1, "grey"), (4, "multispectral")])
def test_weights_for_images_that_are_not_rgb(tmp_path: Path, channels: int, kind: str) -> None:
    path = saved(tmp_path / "odd.safetensors", "test_resnet", in_chans=channels)
    assert f"is for {kind} images ({channels} channels, in conv1.0.weight)" in refusal(pretrained=path)


def test_a_model_that_cannot_take_the_resolution() -> None:
    message = refusal("levit_128s", resolution=40)
    assert "student.name=levit_128s cannot take images of student.resolution=40" in message


def test_a_checkpoint_of_a_training_program_is_unwrapped(tmp_path: Path) -> None:
    weights = timm.create_model("test_resnet").state_dict()
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "model.pth")
    config = StudentConfig(name="test_resnet", resolution=32, frozen=True, pretrained=str(tmp_path / "model.pth"))
    encoder, features = timm_encoder(config)
    assert features == encoder.num_features
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())


def test_a_card_survives_its_file() -> None:
    run = MANIFEST
    assert type(run).from_json({**vars(run), "backbone": vars(run.backbone)}) == run
    assert isinstance(run.backbone, BackboneCard)
