"""The CLIP annotator against open_clip's own way of doing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from toy_clip import write_toy_clip

from coreg_ray.annotation.clip import (
    ClipAnnotator,
    Model,
    TextTable,
    embed_text,
    load_model,
    look_alike,
    probabilities,
    votes,
)
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.errors import UserError

WORDS = Vocabulary((("cat", "kitty"), ("dog",), ("bird",)), ("a photo of a {}", "the {}"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_toy_clip(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def model(toy: dict[str, Any]) -> Model:
    return load_model(toy["model"], toy["pretrained"])


def pictures(count: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@torch.inference_mode()
def by_hand(model: Model, images: np.ndarray) -> torch.Tensor:
    """P_i of METHOD section 1 with open_clip's own pieces: (N, P, K)."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**model.network.visual.preprocess_cfg), is_train=False)
    v = F.normalize(
        model.network.encode_image(torch.stack([transform(Image.fromarray(image)) for image in images])), dim=-1
    )
    answers = []
    for prompt in WORDS.prompts:
        columns = []
        for names in WORDS.names:
            tokens = model.tokenizer([prompt.replace("{}", name) for name in names])
            columns.append(F.normalize(F.normalize(model.network.encode_text(tokens), dim=-1).mean(0), dim=-1))
        answers.append((model.network.logit_scale.exp() * v @ torch.stack(columns).T).softmax(-1))
    return torch.stack(answers, dim=1)


def test_probabilities_equal_open_clips(model: Model) -> None:
    text = embed_text(model, WORDS)
    images = pictures(20)
    answered = ClipAnnotator(model, text)({"image": images, "image_id": np.arange(20)})
    assert answered["embedding"].dtype == np.float16
    assert sorted(answered) == ["embedding", "image_id", "votes"]
    given = torch.cat(list(probabilities(torch.from_numpy(answered["embedding"]), text)))
    expected = by_hand(model, images)
    torch.testing.assert_close(given, expected, atol=2e-3, rtol=0)
    clear = expected.topk(2).values.diff().abs().squeeze(-1) > 5e-3  # elsewhere float16 may turn a tie
    assert clear.any()
    assert (torch.from_numpy(answered["votes"]) == expected.argmax(-1))[clear].all()


def test_descriptions_stand_beside_prompts(model: Model) -> None:
    """Each class of a voter is the mean of its texts, which need not be as many for every class."""
    told = ((("fur", "whiskers"), ("a dog that barks",), ("feathers",)), (("milk",), ("bones",), ("worms", "a nest")))
    words = Vocabulary(WORDS.names, (*WORDS.prompts, "description 1 (x)", "description 2 (y)"), told)
    text = embed_text(model, words)
    assert text.embeddings.shape[:2] == (4, 3)
    assert torch.equal(text.embeddings[:2], embed_text(model, WORDS).embeddings)
    for place, voter in enumerate(told):
        for number, texts in enumerate(voter):
            with torch.inference_mode():
                each = F.normalize(model.network.encode_text(model.tokenizer(list(texts))).float(), dim=-1)
            torch.testing.assert_close(text.embeddings[2 + place, number], F.normalize(each.mean(0), dim=-1))


def test_a_row_does_not_depend_on_its_batch(model: Model) -> None:
    annotator, images = ClipAnnotator(model, embed_text(model, WORDS)), pictures(50)
    whole = annotator({"image": images})
    for size in (1, 7, 16, 33):
        parts = [annotator({"image": images[start : start + size]}) for start in range(0, 50, size)]
        for name in ("embedding", "votes"):
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_votes_are_repeatable_in_any_company() -> None:
    text = TextTable(F.normalize(torch.randn(3, 40, 64), dim=-1), torch.zeros(0, 64), 100.0, 0.0)
    embedding = F.normalize(torch.randn(500, 64), dim=-1).half()
    whole = votes(embedding, text)
    assert torch.equal(torch.cat([votes(part, text) for part in embedding.split(13)]), whole)
    assert torch.equal(votes(embedding.flip(0), text).flip(0), whole)
    assert votes(embedding[:0], text).shape == (0, 3)


def test_out_of_memory_halves_the_batch(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    annotator, images = ClipAnnotator(model, embed_text(model, WORDS), batch_size=64), pictures(100)
    undisturbed = annotator({"image": images})["embedding"]
    forward = annotator._forward

    def small(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 20:
            raise torch.OutOfMemoryError("full")
        return forward(batch)

    monkeypatch.setattr(annotator, "_forward", small)
    np.testing.assert_array_equal(annotator({"image": images})["embedding"], undisturbed)
    assert annotator.batch_size == 16


@pytest.mark.parametrize("precision", ["bf16", "float16"])
def test_half_precision_changes_embeddings_by_its_rounding_alone(model: Model, precision: str) -> None:
    images, text = pictures(40), embed_text(model, WORDS)
    exact = torch.from_numpy(ClipAnnotator(model, text)({"image": images})["embedding"]).float()
    answered = ClipAnnotator(model, text, precision=precision)({"image": images})
    half = torch.from_numpy(answered["embedding"]).float()
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half.norm(dim=1), torch.ones(40), atol=2e-3, rtol=0)
    assert F.cosine_similarity(half, exact).min() > 0.995
    assert (answered["votes"] == votes(torch.from_numpy(answered["embedding"]), text).numpy()).all()


def test_siglip_models_keep_their_own_scale_and_bias(tmp_path: Path) -> None:
    settings = write_toy_clip(tmp_path, 7, init_logit_bias=-10.0, init_logit_scale=2.3, custom_text=True)
    text = embed_text(load_model(settings["model"], settings["pretrained"]), WORDS)
    assert text.bias == -10.0
    assert text.scale == pytest.approx(np.exp(2.3))
    stored = TextTable.from_bytes(text.to_bytes(), text.scale, text.bias)
    assert torch.equal(stored.embeddings, text.embeddings)


def test_fingerprints_follow_weights_and_design_not_paths(toy: dict[str, Any], model: Model, tmp_path: Path) -> None:
    same = write_toy_clip(tmp_path, 0)
    assert load_model(same["model"], same["pretrained"]).fingerprint == model.fingerprint
    other = write_toy_clip(tmp_path, 1)
    assert load_model(other["model"], other["pretrained"]).fingerprint != model.fingerprint
    design = json.loads(Path(toy["model"]).read_text())
    design["quick_gelu"] = True
    (tmp_path / "quick.json").write_text(json.dumps(design))
    assert load_model(str(tmp_path / "quick.json"), toy["pretrained"]).fingerprint != model.fingerprint


def test_names_that_the_model_cannot_tell_apart_are_found() -> None:
    embeddings = torch.eye(4)[None, [0, 1, 0, 2]] + torch.tensor([0.0, 0.01, 0.02, 0.0])[None, :, None]
    text = TextTable(F.normalize(embeddings, dim=-1), torch.zeros(0, 4), 1.0, 0.0)
    assert look_alike(text, ["a", "b", "c", "d"]) == [("a", "c")]


def test_names_are_compared_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All K x K likenesses of 20,000 classes would be gigabytes."""
    angles = torch.rand(1, 300, generator=torch.Generator().manual_seed(0)) * 6.28
    text = TextTable(torch.stack([angles.cos(), angles.sin()], dim=-1), torch.zeros(0, 2), 1.0, 0.0)
    names, likeness = [str(number) for number in range(300)], text.embeddings[0] @ text.embeddings[0].T
    expected = [(str(a), str(b)) for a, b in (likeness >= 0.98).triu(diagonal=1).nonzero().tolist()]
    assert look_alike(text, names) == expected
    sizes: list[int] = []
    triu = torch.Tensor.triu

    def counted(self: torch.Tensor, diagonal: int) -> torch.Tensor:
        sizes.append(self.numel())
        return triu(self, diagonal)

    monkeypatch.setattr(torch.Tensor, "triu", counted)
    monkeypatch.setattr("coreg_ray.annotation.clip._LOGITS_AT_ONCE", 10_000)
    assert look_alike(text, names) == expected
    assert max(sizes) <= 10_000


def test_wrong_models_are_refused_with_the_remedy(toy: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"would have random weights; give one of .*openai"):
        load_model("ViT-B-32", None)
    with pytest.raises(UserError, match="is not known to open_clip"):
        load_model("ViT-Z", "openai")
    with pytest.raises(UserError, match="neither a file nor a tag"):
        load_model("ViT-B-32", "nowhere.pt")
    with pytest.raises(UserError, match="does not exist"):
        load_model("nowhere.json", None)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(write_toy_clip(tmp_path, 3, embed_dim=8)["model"], toy["pretrained"])
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(toy["model"], str(tmp_path / "broken.safetensors"))
