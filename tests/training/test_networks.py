"""The student and what accompanies it: shapes and sizes, timm's models, the queue, the key encoder, messages."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from coreg_ray.config import StudentConfig, student
from coreg_ray.errors import UserError
from coreg_ray.training.networks import (
    PreActBlock,
    PreActResNet,
    Queue,
    Student,
    build_student,
    compiled,
    follow,
    frozen_copy,
    pack,
    unpack,
)
from coreg_ray.training.preact_resnets import PREACT_RESNETS

PIXELS = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def small(**settings: object) -> Student:
    defaults = {"resolution": 16, "width": 4, "projection": 6}
    return build_student(StudentConfig.model_validate(defaults | settings), 3)


# The pre-activation ResNet.


@pytest.mark.parametrize(("resolution", "last"), [(16, 2), (32, 4), (64, 4)])
def test_stages_halve_the_image_and_double_the_channels(resolution: int, last: int) -> None:
    network = PreActResNet(4, resolution)
    x = network.stem(torch.randn(2, 3, resolution, resolution))
    assert x.shape == (2, 4, resolution, resolution)
    assert (x >= 0).all()  # the stem ends in ReLU
    assert network.blocks(x).shape == (2, 32, last, last)
    assert network(torch.randn(2, 3, resolution, resolution)).shape == (2, 32)


def test_the_papers_size() -> None:
    network = PreActResNet(64, 32)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(11.17e6, rel=0.002)
    assert network.num_features == 512
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 1 + 16 + 3
    assert not isinstance(list(network.blocks.modules())[-1], nn.BatchNorm2d)


def test_the_shallow_one_has_a_block_a_stage() -> None:
    network = PreActResNet(64, 32, depth=1)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 1 + 8 + 3
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 512)
    for name, blocks in (("preact_resnet10", 4), ("preact_resnet18", 8)):
        modules = small(name=name).encoder.modules()
        assert sum(isinstance(module, PreActBlock) for module in modules) == blocks


def test_the_configuration_knows_the_same_networks() -> None:
    assert tuple(PREACT_RESNETS) == student.PREACT_RESNETS


def test_a_block_is_two_convolutions_behind_norm_and_relu() -> None:
    """Written out with torch's plain operations, the strided shortcut as one convolution."""
    block = PreActResNet(4).blocks[2].eval()
    assert isinstance(block, PreActBlock)
    assert block.shortcut is not None
    x = torch.randn(2, 4, 9, 9)
    activated = torch.relu(block.norm1(x))
    shortcut = nn.functional.conv2d(activated, block.shortcut.weight, stride=2)
    inner = nn.functional.conv2d(activated, block.conv1.weight, stride=2, padding=1)
    expected = nn.functional.conv2d(torch.relu(block.norm2(inner)), block.conv2.weight, padding=1) + shortcut
    torch.testing.assert_close(block(x), expected)


# The student.


def test_logits_and_unit_features_in_float32() -> None:
    student = small().eval()
    logits, features = student(PIXELS)
    assert (logits.shape, features.shape) == ((2, 3), (2, 6))
    assert logits.dtype == features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(student.classify(PIXELS), logits)
    with torch.autocast("cpu", torch.bfloat16):
        logits, features = student(PIXELS)
    assert logits.dtype == features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))


def test_normalisation_belongs_to_the_model() -> None:
    student = small().eval()
    before = student.classify(PIXELS)
    student.pixel_mean.mul_(2).add_(10)
    student.pixel_std.mul_(2)
    torch.testing.assert_close(student.classify(PIXELS.float() * 2 + 10), before, rtol=1e-4, atol=1e-5)
    assert {"pixel_mean", "pixel_std"} <= set(student.state_dict())


def test_weights_follow_torchs_generator() -> None:
    def fresh(seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return pack(small())

    assert torch.equal(fresh(1), fresh(1))
    assert not torch.equal(fresh(1), fresh(2))


def test_any_timm_model_by_name() -> None:
    for name, features in (("resnet18", 512), ("vit_tiny_patch16_224", 192)):
        student = small(name=name, resolution=32).eval()
        assert student.classifier.in_features == features
        logits, unit = student(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
        assert (logits.shape, unit.shape) == ((2, 3), (2, 6))
        assert student.encoder.training is False


@pytest.mark.parametrize(("name", "close"), [("resnt18", "resnet18"), ("preact_resnet", "preact_resnet18")])
def test_an_unknown_name_lists_close_ones(name: str, close: str) -> None:
    with pytest.raises(UserError, match=rf"student.name={name} is neither .* close names: .*{close}"):
        small(name=name)


def test_preact_has_no_published_weights() -> None:
    with pytest.raises(UserError, match=r"student.pretrained=hub needs a timm model"):
        small(pretrained="hub")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file as the hub has it, classifier included."""
    weights = timm.create_model("test_resnet", num_classes=7).state_dict()
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(weights, path)
    return path, weights


def test_local_weights(
    resnet: tuple[Path, dict[str, Tensor]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, weights = resnet
    torch.save(weights, tmp_path / "model.pt")
    for file in (path, tmp_path / "model.pt"):
        with caplog.at_level("INFO", "coreg_ray"):
            encoder = small(name="test_resnet", resolution=32, pretrained=str(file)).encoder.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in encoder.items())
        assert f"weights from {file}; not used: " in caplog.text
        assert "fc.weight" in caplog.text


def test_pretrained_weights_bring_their_own_normalisation(resnet: tuple[Path, dict[str, Tensor]]) -> None:
    student = small(name="test_resnet", resolution=32, pretrained=str(resnet[0]))
    own = student.pixel_mean.clone()
    published: Any = timm.create_model("test_resnet").pretrained_cfg
    torch.testing.assert_close(own, 255 * torch.tensor(published["mean"]))
    student.normalise_by(torch.zeros(3), torch.ones(3))
    assert torch.equal(student.pixel_mean, own)
    fresh = small(name="test_resnet", resolution=32)
    fresh.normalise_by(torch.zeros(3), torch.ones(3))
    assert torch.equal(fresh.pixel_mean, torch.zeros(3))


def test_local_weights_that_do_not_fit(resnet: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    weights = resnet[1]

    def refused(content: dict[str, Tensor]) -> str:
        save_file(content, tmp_path / "other.safetensors")
        with pytest.raises(UserError) as error:
            small(name="test_resnet", resolution=32, pretrained=str(tmp_path / "other.safetensors"))
        return str(error.value)

    first = next(iter(weights))
    assert f"lacks 1 tensors of the model ({first}, ...)" in refused({k: v for k, v in weights.items() if k != first})
    assert "size mismatch" in refused(weights | {first: weights[first][:1].clone()})
    with pytest.raises(UserError, match=r"none.safetensors is no file; give `hub` or a .safetensors or .pt file"):
        small(name="test_resnet", pretrained="none.safetensors")


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path("owned"),)


def test_weights_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Malicious()}, "model.pt")
    Path("damaged.safetensors").write_bytes(b"nothing")
    for name in ("model.pt", "damaged.safetensors"):
        with pytest.raises(UserError, match=f"student.pretrained={name} cannot be loaded"):
            small(name="test_resnet", resolution=32, pretrained=name)
    assert not Path("owned").exists()


def test_hub_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **settings: object) -> None:
        assert settings["pretrained"] is True
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"weights of test_resnet cannot be had \(no route to host\); give a local"):
        small(name="test_resnet", pretrained="hub")


# The queue of keys.


def entries(start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.arange(start, start + count)
    return numbers[:, None].expand(-1, 2).float(), numbers % 3, numbers % 2 == 0


def test_the_queue_keeps_the_newest_and_masks_the_rest() -> None:
    queue = Queue(5, 2)
    assert len(queue) == 5
    assert not queue.valid.any()
    queue.push(*entries(0, 3))
    assert queue.valid.tolist() == [True, True, True, False, False]
    queue.push(*entries(3, 4))
    assert queue.valid.all()
    assert queue.keys[:, 0].tolist() == [5, 6, 2, 3, 4]
    assert queue.classes.tolist() == [2, 0, 2, 0, 1]
    assert queue.confident.tolist() == [False, True, True, False, True]
    assert queue.position == 2


def test_more_keys_than_slots_and_none() -> None:
    queue = Queue(3, 2)
    queue.push(*entries(0, 1))
    queue.push(*entries(1, 7))
    assert sorted(queue.keys[:, 0].tolist()) == [5, 6, 7]
    before = queue.keys.clone()
    queue.push(*entries(9, 0))
    assert torch.equal(queue.keys, before)
    nothing = Queue(0, 2)
    nothing.push(*entries(0, 4))
    assert len(nothing) == 0


# The key encoder and messages.


def test_the_key_encoder_is_a_moving_average_with_buffers() -> None:
    query, key = small(), frozen_copy(small())
    norms = [module for module in query.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.num_batches_tracked is not None
        norm.running_mean.normal_()
        norm.num_batches_tracked.fill_(7)
    old = {name: tensor.clone() for name, tensor in key.state_dict().items()}
    follow(key, query, 0.75)
    for name, now in key.state_dict().items():
        if now.is_floating_point():
            torch.testing.assert_close(now, 0.75 * old[name] + 0.25 * query.state_dict()[name])
        else:
            assert torch.equal(now, old[name])
    assert any(not name.endswith("tracked") for name, _ in key.named_buffers())


def test_momentum_zero_copies_and_repeated_following_converges() -> None:
    query, key = small(), frozen_copy(small())
    for _ in range(60):
        follow(key, query, 0.5)
    torch.testing.assert_close(pack(key), pack(query), rtol=0, atol=1e-6)


def test_a_frozen_copy_is_independent_and_takes_no_gradient() -> None:
    student = small()
    copy = frozen_copy(student)
    assert not copy.training
    assert student.training
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in student.parameters())
    with torch.no_grad():
        student.classifier.weight.add_(1)
    assert not torch.equal(copy.classifier.weight, student.classifier.weight)


def test_a_packed_network_arrives_unchanged() -> None:
    sender, receiver = small(), small()
    sender(PIXELS)  # moves batch-norm statistics
    count = {name: buffer.clone() for name, buffer in receiver.named_buffers() if not buffer.is_floating_point()}
    message = pack(sender)
    assert message.dim() == 1
    assert message.dtype == torch.float32
    unpack(message, receiver)
    for name, tensor in receiver.state_dict().items():
        assert torch.equal(tensor, count[name] if name in count else sender.state_dict()[name]), name
    assert receiver.classifier.weight.requires_grad
    with pytest.raises(RuntimeError):
        unpack(message[:-1], receiver)


@pytest.mark.slow
def test_a_compiled_network_computes_the_same_and_so_do_its_copies() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 6), nn.ReLU())  # small: compiling takes its time
    plain = Student(encoder, 6, 3, 8).train()
    fast = compiled(copy.deepcopy(plain))
    frozen = frozen_copy(fast)
    assert list(fast.state_dict()) == list(plain.state_dict())  # checkpoints and models do not tell them apart
    pixels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    for network in (plain, fast):
        sum(output.square().sum() for output in network(pixels)).backward()
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    untouched = frozen_copy(copy.deepcopy(frozen))  # a plain copy is not compiled
    torch.testing.assert_close(frozen.classify(pixels), untouched.classify(pixels))
    for network, expected in ((fast, True), (frozen, True), (frozen_copy(plain), False)):
        assert (network.encoder._compiled_call_impl is not None) == expected
