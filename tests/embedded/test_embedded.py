"""The embedded default: the digits, the tiny CLIP as open_clip loads it, and the program that made it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib import resources

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from coreg_ray.embedded import MODEL_NAME, make_tiny_clip, model_config_path, weights_path
from coreg_ray.embedded.digits import CLASS_NAMES, PROMPTS, SPLITS, _table, digits
from coreg_ray.embedded.drawing import MEDIA, STYLES, draw


def drawings(count: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return draw(torch.arange(count) % len(CLASS_NAMES), generator)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@dataclass
class Annotated:
    """What the shipped model says of one split: unit vectors (N, D), probabilities (N, P, K), and the labels (N,)."""

    embedding: Tensor
    probs: Tensor
    labels: Tensor

    @property
    def votes(self) -> Tensor:
        return self.probs.argmax(dim=2)

    @property
    def candidates(self) -> Tensor:
        return F.one_hot(self.votes, len(CLASS_NAMES)).any(dim=1)

    @property
    def right(self) -> Tensor:
        """(N,) 1 where the mean of the prompts names the truth, else 0."""
        return (self.probs.mean(dim=1).argmax(dim=1) == self.labels).double()

    @property
    def covered(self) -> Tensor:
        """(N,) 1 where a prompt votes for the truth, else 0."""
        return (self.votes == self.labels[:, None]).any(dim=1).double()


@pytest.fixture(scope="module")
def annotated() -> dict[str, Annotated]:
    """Both splits through the shipped model, open_clip's own factory and preprocessing."""
    open_clip.add_model_config(model_config_path())
    model, _, preprocess = open_clip.create_model_and_transforms(MODEL_NAME, pretrained=str(weights_path()))
    tokenise = open_clip.get_tokenizer(MODEL_NAME)
    model.eval()
    result: dict[str, Annotated] = {}
    with torch.inference_mode():
        texts = [
            model.encode_text(tokenise([prompt.format(name) for name in CLASS_NAMES]), normalize=True)
            for prompt in PROMPTS
        ]
        for split in SPLITS:
            _, images, labels = digits(split)
            pixels = torch.stack([preprocess(Image.fromarray(image)) for image in images])
            vision = model.encode_image(pixels, normalize=True)
            probs = [(model.logit_scale.exp() * vision @ text.T).softmax(dim=1) for text in texts]
            result[split] = Annotated(vision, torch.stack(probs, dim=1), torch.from_numpy(labels))
    return result


def test_the_split_is_fixed_and_disjoint():
    train, test = digits("train"), digits("test")
    assert [len(part) for part in (*train, *test)] == [1437] * 3 + [360] * 3
    rows = [[int(image_id.rsplit("/", 1)[1]) for image_id in ids] for ids in (train[0], test[0])]
    assert sorted(rows[0] + rows[1]) == list(range(1797))
    assert train[0][0] == "digits/train/0000"
    assert test[0][:3] == ["digits/test/0004", "digits/test/0027", "digits/test/0031"]
    assert (load_digits().target[rows[0] + rows[1]] == np.concatenate([train[2], test[2]])).all()
    assert min(np.bincount(test[2])) >= 25


def test_images_are_the_scans_enlarged():
    ids, images, labels = digits("test")
    assert images.shape == (360, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    scans = load_digits().images[[int(image_id[-4:]) for image_id in ids]] * (255 / 16)
    blocks = images[..., 0].reshape(360, 8, 4, 8, 4).mean(axis=(2, 4))
    assert np.corrcoef(blocks.ravel(), scans.ravel())[0, 1] > 0.98
    assert (images[..., 0] == images[..., 2]).all()


def test_reading_twice_gives_the_same_and_the_size_can_be_chosen():
    first, second = digits("test"), digits("test")
    assert first[0] == second[0]
    assert (first[1] == second[1]).all()
    assert digits("test", size=8)[1].shape == (360, 8, 8, 3)


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"'valid'.*train, test"):
        digits("valid")
    with pytest.raises(ValueError, match=r"size=4 .*8 or more"):
        digits("train", size=4)


def test_importing_loads_no_heavy_library():
    code = "import sys, coreg_ray.embedded; print({'torch', 'open_clip', 'ray', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_digits_load_without_scikit_learn():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from coreg_ray.config import Config\n"
        "from coreg_ray.embedded.digits import digits\n"
        "from coreg_ray.images import open_source\n"
        "source = open_source(Config(test={'kind': 'digits'}), 'test')\n"
        "images = [image for block in source.listing() for image in source.fetch(block)]\n"
        "print([len(digits(split)[0]) for split in ('train', 'test')], len(images))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[1437, 360] 360\n"


def test_the_embedded_table_is_scikit_learns():
    scans, labels = _table()
    theirs = load_digits()
    np.testing.assert_array_equal(scans, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)
    assert labels.dtype == np.int64


def test_class_names_and_prompts():
    assert len(set(CLASS_NAMES)) == 10
    assert len(set(PROMPTS)) == len(PROMPTS) == 12
    assert all(prompt.count("{}") == 1 for prompt in PROMPTS)


def test_the_weights_are_small_and_half_precision():
    assert weights_path().stat().st_size <= 8 * 2**20
    kinds = {name: tensor.dtype for name, tensor in load_file(weights_path()).items()}
    assert {kind for name, kind in kinds.items() if not name.endswith("num_batches_tracked")} == {torch.float16}
    assert model_config_path().stem == MODEL_NAME  # open_clip names a model after its configuration file


@pytest.mark.parametrize("split", SPLITS)
def test_the_annotator_is_useful_and_imperfect(annotated, split):
    said = annotated[split]
    assert 0.55 <= said.right.mean() <= 0.85
    assert said.covered.mean() >= 0.80
    assert 1.5 <= said.candidates.sum(dim=1).double().mean() <= 2.5
    for k in range(10):  # no class is lost: there is something to repair it from
        assert said.right[said.labels == k].mean() >= 0.3
        assert said.covered[said.labels == k].mean() >= 0.6


@pytest.mark.parametrize("split", SPLITS)
def test_the_prompts_disagree(annotated, split):
    votes = annotated[split].votes
    disagreement = (votes[:, :, None] != votes[:, None]).double().mean(dim=0)
    assert disagreement.sum() / (len(PROMPTS) * (len(PROMPTS) - 1)) > 0.10
    assert (disagreement + torch.eye(len(PROMPTS))).min() > 0.02  # and no two prompts say the same


def test_what_the_annotator_gets_wrong_is_not_lost_in_its_embedding(annotated):
    """It is imperfect because it has seen no handwriting, not because its space is too narrow to hold the digits."""
    train, test = annotated["train"], annotated["test"]
    assert train.embedding.shape[1] >= 64
    probe = LogisticRegression(C=100, max_iter=1000).fit(train.embedding.numpy(), train.labels.numpy())
    assert probe.score(test.embedding.numpy(), test.labels.numpy()) >= 0.93


def test_nothing_handwritten_is_drawn():
    text = resources.files("coreg_ray.embedded").joinpath("strokes.yaml").read_text(encoding="utf-8")
    assert set(yaml.safe_load(text)) == set(MEDIA)
    assert not any("hand" in word for word in (*MEDIA, *STYLES))


def test_prompts_use_words_that_the_captions_taught():
    frames = {word for frame in make_tiny_clip.FRAMES for word in frame.split()}
    assert {word for prompt in PROMPTS for word in prompt.split()} <= frames | set(STYLES)


def test_the_program_measures_what_open_clip_gives(annotated):
    model = open_clip.create_model(MODEL_NAME, pretrained=str(weights_path())).eval()
    figures, said = make_tiny_clip.measure(model, "test"), annotated["test"]
    assert figures["zero-shot accuracy"] == pytest.approx(said.right.mean().item(), abs=0.006)
    assert figures["coverage"] == pytest.approx(said.covered.mean().item(), abs=0.006)
    sizes = [len(set(row)) for row in said.votes.tolist()]
    assert figures["mean candidates"] == pytest.approx(np.mean(sizes), abs=0.01)
    assert figures["recall per class"][1] == pytest.approx(said.right[said.labels == 1].mean().item(), abs=0.05)


@pytest.mark.usefixtures("threads")
def test_two_steps_of_the_program(tmp_path):
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for file, seed in zip(files, "001", strict=True):
        make_tiny_clip.main(["--output", str(file), "--steps", "2", "--seed", seed])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes() != files[2].read_bytes()
    loaded = open_clip.create_model(MODEL_NAME, pretrained=str(files[0])).state_dict()
    assert all(torch.equal(loaded[name], value.to(loaded[name].dtype)) for name, value in load_file(files[0]).items())


def test_the_program_refuses_no_steps(tmp_path, capsys):
    with pytest.raises(SystemExit):
        make_tiny_clip.main(["--output", str(tmp_path / "x"), "--steps", "0"])
    assert "--steps=0" in capsys.readouterr().err


def test_drawings_differ_and_repeat():
    first, again, other = drawings(40), drawings(40), drawings(40, seed=1)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (40, 3, 32, 32)
    assert first.images.min() >= 0
    assert first.images.max() <= 1
    assert (first.images.flatten(1).amax(dim=1) > 0.2).all()  # all have ink


def test_style_words_are_true_of_the_drawings():
    many = drawings(2000)
    styles = dict(zip(STYLES, many.styles.T, strict=True))
    assert all(0.01 < share < 0.6 for share in many.styles.double().mean(dim=0))
    assert (many.styles[:, -len(MEDIA) :].sum(dim=1) == 1).all()
    ink = many.images[:, 0].mean(dim=(1, 2))
    brightest = many.images[:, 0].amax(dim=(1, 2))
    width = (many.images[:, 0].amax(dim=1) > 0.15).sum(dim=1).double()
    height = (many.images[:, 0].amax(dim=2) > 0.15).sum(dim=1).double()
    assert ink[styles["bold"]].mean() > 2 * ink[styles["thin"]].mean()
    assert brightest[styles["faint"]].max() < 0.9
    assert width[styles["wide"]].mean() > 1.5 * width[styles["narrow"]].mean()
    assert height[styles["small"]].mean() < height[~styles["small"]].mean() - 2


def test_captions_say_only_what_is_true():
    many = drawings(500)
    texts, mentioned = make_tiny_clip.captions(many, torch.Generator().manual_seed(0))
    assert not (mentioned & ~many.styles).any()
    assert mentioned.sum(dim=1).unique().tolist() == list(range(7))  # from nothing to all that can be said
    for text, label, words in zip(texts, many.labels.tolist(), mentioned.tolist(), strict=True):
        tokens = text.split()
        assert tokens[-1] in (CLASS_NAMES[label], str(label))
        assert {style for style in STYLES if style in tokens} == {s for s, w in zip(STYLES, words, strict=True) if w}


def test_positives_are_the_true_captions():
    many = drawings(60)
    _, mentioned = make_tiny_clip.captions(many, torch.Generator().manual_seed(0))
    positive = make_tiny_clip.positives(many, mentioned)
    for i in range(60):
        for j in range(60):
            is_true = many.labels[i] == many.labels[j] and all(
                many.styles[i, s] for s in range(len(STYLES)) if mentioned[j, s]
            )
            assert positive[i, j] == is_true
    assert positive.diagonal().all()


def test_contrast_against_slow_arithmetic():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    positive = (torch.rand(5, 5, generator=generator) < 0.3) | torch.eye(5, dtype=torch.bool)
    total = 0.0
    for scores, true in ((logits, positive), (logits.T, positive.T)):
        for i in range(5):
            log_sum = np.log(sum(np.exp(value.item()) for value in scores[i]))
            terms = [log_sum - scores[i, j].item() for j in range(5) if true[i, j]]
            total += sum(terms) / len(terms) / 10
    assert make_tiny_clip.contrast(logits, positive).item() == pytest.approx(total)
