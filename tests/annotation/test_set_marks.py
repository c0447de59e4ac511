"""Candidate sets are known by all that decides them: every setting says on which side it stands."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import BaseModel

from coreg_ray.annotation.arrow import lists, write_table
from coreg_ray.annotation.candidate_builder import Making, join, read_evidence, score, to_table
from coreg_ray.annotation.card import Card
from coreg_ray.annotation.factory import describe, identity, vocabulary_for
from coreg_ray.annotation.labels import Labels, read_labels
from coreg_ray.annotation.manual import read_manual
from coreg_ray.annotation.parts import parts
from coreg_ray.annotation.preparation import prepare, take_listing
from coreg_ray.annotation.set_marks import decided_by, digits, mark_of_file, mark_of_sets, remembered
from coreg_ray.annotation.vocabulary import Vocabulary, vocabulary
from coreg_ray.annotation.writer import Place, write_annotations
from coreg_ray.config import AnnotatorConfig, Config
from coreg_ray.config.sections import decides
from coreg_ray.config.texts import fields_of, flattened
from coreg_ray.ids import fingerprint
from coreg_ray.images import open_source
from coreg_ray.images.decode import Fit
from coreg_ray.methods import KINDS
from coreg_ray.run.records import CandidateFigures, CandidateManifest
from coreg_ray.run.storage import Folder

NONE = Labels(np.zeros(0, np.int64), np.zeros(0, np.int64))

# What each setting decides: the answers about which images, what becomes of the answers, what is learnt, or nothing.
ANNOTATION = {
    *("source.kind", "source.path", "source.name", "source.subset", "source.image_column", "source.id_column"),
    *("source.background", "source.descriptions", "source.description_votes"),
    *("test.kind", "test.path", "test.name", "test.subset"),
    *("annotator.kind", "annotator.model", "annotator.pretrained", "annotator.questions", "annotator.image_side"),
    *("annotator.votes", "annotator.voters", "annotator.scores"),
    "further_annotators",
}
CANDIDATES = {
    *("source.classes", "source.prompts", "source.manual_labels", "source.folder_labels", "source.label_column"),
    *("candidates.mode", "candidates.partial_rate", "candidates.noise_rate", "candidates.k", "candidates.threshold"),
    *("candidates.ratio", "candidates.mass", "candidates.align", "candidates.weighted"),
}
TRAINING = {
    *("seed", "start_from", "source.holdout", "method.kind", "method.labels"),
    *("method.epochs", "method.warmup_epochs", "method.contrast_delay", "method.batch_size"),
    *("method.clean", "method.warmup_batch_size", "method.learning_rate", "method.momentum", "method.weight_decay"),
    *(
        "method.clean",
        "method.clean_threshold",
        "method.temperature",
        "method.weak_views",
        "method.lambda_u",
        "method.ramp_epochs",
    ),
    *("method.mixup_alpha", "method.loss_history", "method.prototype_weight", "method.prototype_momentum"),
    *("method.prototype_temperature", "method.contrast_weight", "method.contrast_temperature", "method.key_momentum"),
    *("method.queue_size", "method.prior", "method.order", "method.exchanges", "method.trusted_share"),
    "method.neighbours",
    *("student.name", "student.pretrained", "student.resolution", "student.width", "student.projection"),
    *("student.views", "student.flip", "student.precision", "student.dropout", "student.backbone_learning_rate"),
    *("student.frozen", "student.frozen_views", "student.batch_norm", "student.warm_start"),
}
# Settings of one kind of method; no other's result depends on them, and the fingerprint has the kind's own alone.
OF_A_KIND = {name for name, _ in fields_of(Config) if name.startswith(tuple(f"method.{kind}." for kind in KINDS))}
NOTHING = {
    *("output", "source.unreadable", "student.compile"),
    *("annotator.batch_size", "annotator.precision", "annotator.min_actors", "annotator.max_actors"),
    *("annotator.num_gpus", "annotator.num_cpus", "annotator.endpoint", "annotator.allow_upload"),
    *("annotator.key_variable", "annotator.concurrency", "annotator.timeout_s", "annotator.retries"),
    *("annotator.max_requests", "annotator.retry_rejects", "annotator.price_input", "annotator.price_output"),
    *("cluster.num_workers", "cluster.use_gpu", "cluster.resources_per_worker", "cluster.label_selector"),
    *("cluster.threads", "cluster.wait_s", "cluster.max_failures", "cluster.memory_share"),
    *("checkpoint.every", "checkpoint.keep"),
    *("export.network", "export.calibrate", "export.onnx", "export.program", "export.int8", "export.abstain"),
    *("report.pictures", "report.images", "report.baselines", "report.review"),
}
SIDES = {
    "annotation": ANNOTATION,
    "candidates": CANDIDATES,
    "training": TRAINING,
    "nothing": NOTHING,
    "of a kind": OF_A_KIND,
}
LEAVE_THE_SETS = {  # of those that decide answers: they warn and score
    *("source.background", "test.kind", "test.path", "test.name", "test.subset"),
}
OF_EMBEDDINGS = {"candidates.align"}  # which the answers made here have not; test_label_model_sets.py looks at it
OTHER_IMAGES = {"source.name", "source.subset"}  # of sets that are no files; like another path, they list other ids


def test_every_setting_is_classified() -> None:
    """A new one has to be put on a side, and where it decides candidate sets into `CHANGES`, too."""
    every = [name for name, _ in fields_of(Config)]
    sorted_out = [name for side in SIDES.values() for name in side]
    assert sorted(sorted_out) == sorted(every)
    inert = {name for name, field in _fields() if field == "nothing"}
    assert inert == NOTHING  # what decides nothing is what the configuration itself says decides nothing
    assert set(flattened(Config().decisive())) == ANNOTATION | CANDIDATES | TRAINING


def test_every_setting_that_decides_sets_is_tried() -> None:
    deciding = (ANNOTATION | CANDIDATES) - LEAVE_THE_SETS - OTHER_IMAGES - OF_EMBEDDINGS
    assert set(CHANGES) == deciding | {"seed"}  # synthetic sets are drawn by it


def _fields(section: type[BaseModel] = Config, above: str = "", inherited: str | None = None) -> Any:
    """Dotted name of every setting and what it decides; a section that decides nothing says so for all in it."""
    for name, field in section.model_fields.items():
        inner, mark = field.annotation, inherited or (decides(field) if decides(field) == "nothing" else None)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _fields(inner, f"{above}{name}.", mark)
        else:
            yield f"{above}{name}", mark or decides(field)


CHAT = {"kind": "chat", "model": "eye", "endpoint": "http://localhost:1/v1", "allow_upload": True}
FILE = {"kind": "votes", "votes": "votes.csv"}
SCORED = {"kind": "votes", "votes": "scored.jsonl"}
DRAWN = {"candidates": {"mode": "synthetic", "partial_rate": 0.3, "noise_rate": 0.3}}
TABLE = {"source": {"kind": "parquet"}}
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {  # what else is set, and the value that changes the sets
    "seed": (DRAWN, 1),
    "source.kind": ({}, "parquet"),
    "source.path": ({}, "other"),
    "source.image_column": (TABLE, "picture"),
    "source.id_column": (TABLE, "key"),
    "source.classes": ({}, ["cat", "dog", "cow"]),
    "source.prompts": ({}, ["a {}", "one {}"]),
    "source.descriptions": ({"source": {"descriptions": "looks.yaml"}}, "other.yaml"),
    "source.description_votes": ({"source": {"descriptions": "looks.yaml"}}, "mean"),
    "source.manual_labels": ({}, "labels.csv"),
    "source.folder_labels": (DRAWN, True),  # from labels that are not known: refused, which is another outcome
    "source.label_column": ({**TABLE, **DRAWN}, "other_label"),
    "annotator.kind": ({}, "chat"),
    "annotator.model": ({}, "ViT-B-16"),
    "annotator.pretrained": ({}, "tag"),
    "annotator.questions": ({"annotator": CHAT}, ["Is it {}?", "{}?"]),
    "annotator.image_side": ({"annotator": CHAT}, 64),
    "annotator.votes": ({"annotator": FILE}, "other.csv"),
    "annotator.voters": ({"annotator": FILE}, ["bob"]),
    "annotator.scores": ({"annotator": SCORED}, "probabilities"),
    "further_annotators": ({}, [CHAT]),
    "candidates.mode": ({}, "single"),
    "candidates.k": ({"candidates": {"mode": "top_k", "k": 2}}, 3),
    "candidates.threshold": ({"candidates": {"mode": "threshold"}}, 0.6),
    "candidates.ratio": ({"candidates": {"mode": "ratio"}}, 0.9),
    "candidates.mass": ({"candidates": {"mode": "cumulative"}}, 0.3),
    "candidates.weighted": ({"candidates": {"mode": "cumulative"}}, True),
    "candidates.partial_rate": (DRAWN, 0.9),
    "candidates.noise_rate": (DRAWN, 0.9),
}
NAMES = ["cat", "dog", "bird", "fish"]


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), level).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of pictures and one Parquet file in each."""
    root = tmp_path_factory.mktemp("pools")
    for place, offset in (("pool", 0), ("other", 100)):
        for number in range(24):
            path = root / place / NAMES[number % 4] / f"{offset + number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(offset + number))
        ids = [f"{number:02d}" for number in range(24)]
        columns = {
            "image": [png(number) for number in range(24)], "picture": [png(number + 60) for number in range(24)],
            "image_id": ids, "key": [f"k{name}" for name in ids],
            "label": [number % 4 for number in range(24)], "other_label": [number % 3 for number in range(24)],
        }  # fmt: skip
        pq.write_table(pa.table(columns), root / place / "table.parquet")
    (root / "labels.csv").write_text("image_id,label\ncat/0.png,dog\n")
    looks = "cat: [furry, small]\ndog: barks\nbird: feathers\nfish: "
    (root / "looks.yaml").write_text(f"{looks}scales")
    (root / "other.yaml").write_text(f"{looks}wet")
    (root / "votes.csv").write_text("image_id,ann,bob\ncat/0.png,dog,cat\n")
    (root / "other.csv").write_text("image_id,ann,bob\ncat/0.png,dog,bird\n")
    (root / "scored.jsonl").write_text('{"image_id": "cat/0.png", "votes": [0], "probabilities": [0.4, 0.6, 0, 0]}\n')
    return root


def configured(pools: Path, tree: dict[str, Any]) -> Config:
    source = {
        "kind": "folder", "path": "pool", "classes": NAMES, "prompts": ["a {}", "the {}", "my {}"],
        "folder_labels": tree.get("candidates", {}).get("mode") == "synthetic",
    } | tree.get("source", {})  # fmt: skip
    source["path"] = str(pools / source["path"])
    for name in ("manual_labels", "descriptions"):
        if source.get(name):
            source[name] = str(pools / source[name])
    annotator = dict(tree.get("annotator", {"model": "clip"}))
    if annotator.get("votes"):
        annotator["votes"] = str(pools / annotator["votes"])
    return Config.model_validate({**tree, "source": source, "annotator": annotator})


def with_value(tree: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    section, _, name = dotted.rpartition(".")
    if not section:
        return {**tree, name: value}
    more = CHAT if dotted == "annotator.kind" else {}
    return {**tree, section: {**tree.get(section, {}), **more, name: value}}


def words_of(config: Config) -> Vocabulary:
    source = config.source
    asked = (source.classes, source.prompts, (), source.descriptions, source.description_votes)
    return vocabulary(source.kind, *asked)


def card_of(annotator: AnnotatorConfig, config: Config) -> Card:
    words = vocabulary_for(annotator, words_of(config))
    if annotator.kind in ("chat", "votes"):
        return describe(annotator, words, [])[0]
    return Card("clip", annotator.model, fingerprint(identity(annotator)), words.prompts, words.names, {})


def answers(card: Card, contents: list[str]) -> np.ndarray:
    """Votes (N, P) that hang on the annotator, the picture and the prompt, as real ones do."""
    return np.array(
        [[int(fingerprint(card.encoder, c, p), 16) % len(card.names) for p in card.prompts] for c in contents], np.int32
    )


def made(config: Config, output: Folder) -> tuple[str, str]:
    """The fingerprint of the candidate sets and a mark over the sets, annotated and made as the commands do."""
    words = words_of(config)
    labels = output / "labels"
    source = open_source(config, "pool", words.index())
    pictures = [
        batch for block in take_listing(source, labels) for batch in prepare(block, source=source, fit=Fit.square(4))
    ]
    whole = {name: np.concatenate([batch[name] for batch in pictures]) for name in ("image_id", "content")}
    manual = read_manual(config.source.manual_labels, words)[1] if config.source.manual_labels else NONE
    making = Making(config.candidates, read_labels(labels), manual, output / "candidates", config.seed)
    cards = [card_of(annotator, config) for annotator in [config.annotator, *config.further_annotators]]
    evidence = []
    for card in cards:
        folder = output / card.folder
        split = np.full(len(whole["image_id"]), "pool", dtype=object)
        votes = answers(card, whole["content"].tolist())
        place = {"pool": Place(folder, 0, output / "rejects")}
        if card.details.get("scores", "votes") != "votes":
            card = replace(card, details={"scores": "votes"})  # their mean is another way to the same sets
        write_annotations({**whole, "split": split, "votes": votes}, places=place, card=card)
        (part,) = parts(folder)
        evidence.append(read_evidence(part, folder, card, None, making))
    together = evidence[0]
    if len(cards) > 1:
        tables = pa.concat_tables([to_table(one, number) for number, one in enumerate(evidence)])
        together = join(tables, [len(card.prompts) for card in cards])
    total = score(together, making, "sets")
    return decided_by(config, cards, manual, making.labels, total.voted), digits(total.chosen)


@pytest.mark.parametrize("dotted", CHANGES)
def test_what_decides_the_sets_is_in_their_fingerprint(dotted: str, pools: Path, tmp_path: Path) -> None:
    beside, value = CHANGES[dotted]
    if dotted == "source.folder_labels":
        beside = {**beside, "source": {"folder_labels": False}}
        with pytest.raises(ValueError, match="needs a label for every image"):
            made(configured(pools, beside), Folder.at(tmp_path / "before"))
        return
    before = made(configured(pools, beside), Folder.at(tmp_path / "before"))
    again = made(configured(pools, beside), Folder.at(tmp_path / "again"))
    after = made(configured(pools, with_value(beside, dotted, value)), Folder.at(tmp_path / "after"))
    assert before == again
    assert after[0] != before[0]
    assert after[1] != before[1]  # and rightly so: the sets are others


def test_manual_labels_count_by_what_the_file_says(pools: Path, tmp_path: Path) -> None:
    names = ["one", "two", "three"]
    texts = ["cat/0.png,dog\ncat/4.png,cat\n", "cat/4.png,cat\ncat/0.png,dog\nbird/2.png,\n", "cat/0.png,bird\n"]
    marks = []
    for name, text in zip(names, texts, strict=True):
        (pools / f"{name}.csv").write_text(f"image_id,label\n{text}")
        marks.append(made(configured(pools, {"source": {"manual_labels": f"{name}.csv"}}), Folder.at(tmp_path / name)))
    assert marks[0] == marks[1] != marks[2]  # another path, order and empty line are the same labels


@pytest.mark.parametrize("dotted", ["method.epochs", "student.width", "source.holdout", "seed", "annotator.batch_size"])
def test_what_is_learnt_from_the_sets_leaves_them(dotted: str, pools: Path, tmp_path: Path) -> None:
    value = {"source.holdout": 0.2, "seed": 3}.get(dotted, 70)
    tree = {"annotator": {"model": "clip"}}
    before = made(configured(pools, tree), Folder.at(tmp_path / "1"))
    assert made(configured(pools, with_value(tree, dotted, value)), Folder.at(tmp_path / "2")) == before


def test_the_mark_of_sets_is_that_of_their_files_in_whatever_parts(tmp_path: Path) -> None:
    rows, trusted = np.array([5, 2**62, 9]), np.array([False, True, False])
    sizes, indices = np.array([2, 1, 0]), np.array([0, 3, 1], np.int32)
    whole = mark_of_sets(rows, sizes, indices, trusted)
    folder = Folder.at(tmp_path)
    for name, kept in (("a", [0]), ("b", [2, 1])):
        ends = np.cumsum(sizes)
        flat = np.concatenate([indices[ends[i] - sizes[i] : ends[i]] for i in kept])
        sets = lists(sizes[kept], flat)
        write_table(folder, name, pa.table({"row": rows[kept], "candidates": sets, "trusted": trusted[kept]}))
    assert digits(mark_of_file("a", folder) + mark_of_file("b", folder)) == digits(whole)
    for other in (
        mark_of_sets(rows + 1, sizes, indices, trusted),
        mark_of_sets(rows, np.array([1, 2, 0]), indices, trusted),
        mark_of_sets(rows, sizes, indices[::-1].copy(), trusted),
        mark_of_sets(rows, sizes, indices, ~trusted),
        mark_of_sets(rows, sizes, indices, trusted, np.ones(3, np.float16)),
    ):
        assert digits(other) != digits(whole)


def test_what_sets_were_called_is_remembered() -> None:
    def manifest(name: str, sets: str | None, before: CandidateManifest | None) -> CandidateManifest:
        made = CandidateManifest(["a"], name, CandidateFigures(1), [1.0], sets=sets)
        return CandidateManifest.from_json(replace(made, known_as=remembered(before)).as_json())

    old = manifest("old formula", "S1", None)
    changed = manifest("new formula, other labels", "S2", old)
    back = manifest("new formula", "S1", changed)
    assert old.fingerprints == ["old formula"]
    assert changed.fingerprints == ["new formula, other labels"]  # which no run on the old sets goes on with
    assert back.fingerprints == ["new formula", "old formula"]
    assert remembered(None) == remembered(replace(old, sets=None)) == {}


def test_votes_count_though_the_sets_are_the_same() -> None:
    card = Card("chat", "m", "e", ("a {}", "the {}"), (("cat",), ("dog",)), {})
    one, other = (decided_by(Config(), [card], NONE, NONE, number) for number in (1, 2))
    assert one != other
