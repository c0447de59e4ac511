"""The run folder: the only place that knows what lies where in it, and what type each file's content has.

RUN/
    config.yaml, versions.json            the settings, and what they were last run with
    annotations/<split>/<annotator>/      what annotators answered; annotators.json names those whose votes count,
                                          source.json the source that the images came from
    rejects/<split>/, labels/<split>/     what could not be decoded; true labels, which only score
    candidates/                           candidate sets of the pool, manifest.json, test.json; before.json while they
                                          are made again
    voters.csv                            what the label model believes of each voter
    rows/<split>/                         images at the student's resolution
    features/<split>/                     what a frozen backbone saw of them; its weights and manifest.json beside
    checkpoints/, history.csv, tensorboard/, ray/
    purified/, probabilities/             a label for every image of the pool; what both networks say of it
    model/, metrics.json, baselines.json, report.html, review.csv, failure.txt
    review.jsonl                          every label given on the review page, as it was given
    borrowed.json                         which of these folders lie in another run
    .lock                                 which command works here at the moment (lock.py)
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from coreg_ray import __version__
from coreg_ray.config import Config
from coreg_ray.config.fit_to_pool import as_begun
from coreg_ray.config.older import completed
from coreg_ray.config.texts import changed, flattened, resolved_yaml
from coreg_ray.errors import UserError
from coreg_ray.run.claim import claim, usable
from coreg_ray.run.features import FeaturesManifest
from coreg_ray.run.history import Epochs, as_csv, from_csv
from coreg_ray.run.origin import Split, origin, refuse_others
from coreg_ray.run.records import Baseline, CandidateManifest, PurifiedManifest, RowsManifest, from_json
from coreg_ray.run.storage import Folder
from coreg_ray.run.voters import VoterLine
from coreg_ray.run.voters import as_csv as voters_csv

CONFIG, VERSIONS, LINKS = "config.yaml", "versions.json", "borrowed.json"
METRICS, HISTORY, BASELINES, FAILURE = "metrics.json", "history.csv", "baselines.json", "failure.txt"
VOTERS = "voters.csv"
REPORT, REVIEW, REVIEW_BESIDE = "report.html", "review.csv", "review-new.csv"
JOURNAL, CONTINUED_LOG = "review.jsonl", "review-train.log"
MANIFEST, USED, ZERO_SHOT, BEFORE = "manifest.json", "annotators.json", "test.json", "before.json"
ORIGIN = "source.json"
_DISTRIBUTIONS = ("torch", "ray", "open_clip_torch")


class RunFolder(Folder):
    """One run on any file system; as a `Folder` it is the folder itself."""

    # Where things lie.

    def resolve(self, name: str) -> Folder:
        """A folder of this run: its own, or the one that `link` named; trials of a search share their data."""
        links = self._read_json_or(LINKS, {})
        return Folder(self.filesystem, links[name]) if name in links else self / name

    def link(self, **folders: Folder) -> None:
        """Let `resolve` find these folders, which lie elsewhere on the same file system."""
        self.write_json(LINKS, {name: folder.path for name, folder in folders.items()})

    def unlink(self, *names: str) -> None:
        """Take links back: the folders of these names lie here."""
        links = self._read_json_or(LINKS, {})
        if links.keys() & set(names):
            self.write_json(LINKS, {name: path for name, path in links.items() if name not in names})

    def own(self, name: str, split: Split) -> Folder:
        """The folder of a split in this very run, which may be written to; `annotations(split)` and others resolve."""
        return self / name / split

    def annotations(self, split: Split) -> Folder:
        return self.resolve("annotations") / split

    def rejects(self, split: Split) -> Folder:
        return self.resolve("rejects") / split

    def labels(self, split: Split) -> Folder:
        return self.resolve("labels") / split

    def rows(self, split: Split) -> Folder:
        return self.resolve("rows") / split

    @property
    def features(self) -> Folder:
        return self.resolve("features")

    @property
    def candidates(self) -> Folder:
        return self.resolve("candidates")

    @property
    def checkpoints(self) -> Folder:
        return self / "checkpoints"

    @property
    def model(self) -> Folder:
        return self / "model"

    @property
    def purified(self) -> Folder:
        """The purified labels, one row an image of the pool."""
        return self / "purified"

    @property
    def probabilities(self) -> Folder:
        """What both networks together say of the images in `purified`: in files of the same names, in their order."""
        return self / "probabilities"

    @property
    def ray(self) -> Folder:
        """What Ray Train keeps for itself; nothing of it is read again."""
        return self / "ray"

    # Whose it is, and what was asked for.

    def claim(self, config: Config) -> None:
        """Make the folder this run's, or refuse it.

        Raises:
            UserError: it cannot be written, holds something else, or a run with other decisive settings.
        """

        def refuse_other(text: str) -> None:
            there = self._parsed(text)
            if config.fingerprint() != there.fingerprint():
                differences = changed(flattened(there.decisive()), flattened(config.decisive()))
                raise UserError(
                    f"--output {config.output} holds a run with other settings ({'; '.join(differences[:5])}); choose "
                    "another --output, or continue with the settings in its config.yaml"
                )

        with usable(config.output):
            config = as_begun(config, self.read_config())
        content = resolved_yaml(config)
        claim(self, config.output, holds="run", record=CONFIG, content=content, check=refuse_other)
        self._write_versions()

    def claim_for_annotation(self, config: Config) -> None:
        """Make the folder one that may be annotated into, with whatever settings it was used before, or refuse it.

        A run that has been trained keeps the `config.yaml` that it was begun with.

        Raises:
            UserError: it cannot be written, or holds something else, or annotations of other images.
        """
        with usable(config.output):
            for split in get_args(Split):
                self.refuse_other_images(config, split)
            trained = self.exists(CONFIG) and self.checkpoints.exists()
            content = self.read(CONFIG).decode() if trained else resolved_yaml(config)
        kind = "annotations"
        claim(self, config.output, holds=kind, record=CONFIG, content=content, check=lambda text: None, sign=kind)
        self._write_versions()

    def refuse_other_images(self, config: Config, split: Split) -> None:
        """Raises UserError where the answers that lie here are about another source's images and would be dropped."""
        table, now = self.own("annotations", split), origin(config, split)
        if now is None or not table.files(".parquet"):
            return
        if table.exists(ORIGIN):
            then, where = table.read_json(ORIGIN), f"{table.path}/{ORIGIN}"
        else:  # an earlier version annotated it
            begun, where = self.read_config(), f"{self.path}/{CONFIG}"
            then = origin(begun, split) if begun else None
        refuse_others(then, now, split, f"--output {config.output}", where, table.path)

    def write_origin(self, config: Config, split: Split) -> None:
        """Keep which source's images `annotations/<split>/` is about."""
        self.own("annotations", split).write_json(ORIGIN, origin(config, split))

    def write_config(self, config: Config) -> None:
        """Write `config.yaml`, whatever stands there, and `versions.json` beside it."""
        self.write(CONFIG, resolved_yaml(config))
        self._write_versions()

    def read_config(self) -> Config | None:
        """What `config.yaml` says; settings that its version lacked have the value that reproduces it. None: no file.

        Raises:
            UserError: it is none of ours, or of a later version.
        """
        return self._parsed(self.read(CONFIG).decode()) if self.exists(CONFIG) else None

    def _parsed(self, text: str) -> Config:
        try:
            return Config.model_validate(completed(yaml.safe_load(text)))
        except (ValidationError, yaml.YAMLError, AttributeError, TypeError) as error:
            raise UserError(
                f"{self.path}/{CONFIG} is not for this version of coreg-ray ({error}); use the version that wrote it"
            ) from error

    def _write_versions(self) -> None:
        self.write_json(VERSIONS, versions())

    # What came of it.

    def read_metrics(self) -> dict[str, Any]:
        """Figures by name (metrics.py); empty where there are none yet."""
        return self._read_json_or(METRICS, {})

    def update_metrics(self, figures: dict[str, Any], stale: tuple[str, ...] = ()) -> dict[str, Any]:
        """Add figures to `metrics.json`, or replace them there; `stale` ones go, by how they begin. Returns all."""
        whole = {name: value for name, value in self.read_metrics().items() if not name.startswith(stale)} | figures
        self.write_json(METRICS, whole)
        return whole

    def read_history(self) -> Epochs:
        """The rows of `history.csv`; empty where there is none."""
        return from_csv(self.read(HISTORY).decode()) if self.exists(HISTORY) else []

    def write_history(self, history: Epochs) -> None:
        """Replace `history.csv`."""
        self.write(HISTORY, as_csv(history))

    def read_candidate_manifest(self) -> CandidateManifest | None:
        """What the candidate sets are; None where there are none, or not all of them."""
        folder = self.candidates
        return CandidateManifest.from_json(folder.read_json(MANIFEST)) if folder.exists(MANIFEST) else None

    def read_used(self, split: Split) -> list[Folder]:
        """The folders of the annotators whose votes count, in their order; empty where nothing was annotated."""
        table = self.annotations(split)
        return [table / name for name in table.read_json(USED)] if table.exists(USED) else []

    def write_used(self, split: Split, names: Iterable[str]) -> None:
        """Say whose votes count: names of folders below `annotations/<split>/`."""
        self.own("annotations", split).write_json(USED, list(names))

    def write_voters(self, voters: Sequence[VoterLine]) -> None:
        """Write `voters.csv`, or remove it where there is nothing to say."""
        if voters:
            self.write(VOTERS, voters_csv(voters))
        else:
            self.delete(VOTERS)

    def read_rows_manifest(self, split: Split) -> RowsManifest | None:
        """Which images `rows/<split>/` holds; None where that is not settled."""
        folder = self.rows(split)
        return from_json(RowsManifest, folder.read_json(MANIFEST)) if folder.exists(MANIFEST) else None

    def write_rows_manifest(self, split: Split, manifest: RowsManifest) -> None:
        """Say which images `rows/<split>/` holds."""
        self.own("rows", split).write_json(MANIFEST, asdict(manifest))

    def read_purified_manifest(self) -> PurifiedManifest | None:
        """What the purified labels are; None where there are none, or not all of them."""
        there = self.purified.exists(MANIFEST)
        return from_json(PurifiedManifest, self.purified.read_json(MANIFEST)) if there else None

    def write_purified_manifest(self, manifest: PurifiedManifest) -> None:
        """Say that all purified labels are there, and what they are."""
        self.purified.write_json(MANIFEST, asdict(manifest))

    def read_features_manifest(self) -> FeaturesManifest | None:
        """Which features lie in `features/`; None where none do."""
        folder = self.features
        return FeaturesManifest.from_json(folder.read_json(MANIFEST)) if folder.exists(MANIFEST) else None

    def write_features_manifest(self, manifest: FeaturesManifest) -> None:
        """Say which features lie, or are about to lie, in this run's own `features/`."""
        (self / "features").write_json(MANIFEST, asdict(manifest))

    def read_baselines(self, fingerprint: list[str | None]) -> list[Baseline] | None:
        """What the method was compared with, if that was under these very settings and annotations."""
        kept = self._read_json_or(BASELINES, {})
        if not kept or kept["fingerprint"] != fingerprint:
            return None
        return [from_json(Baseline, entry) for entry in kept["baselines"]]

    def write_baselines(self, fingerprint: list[str | None], baselines: list[Baseline]) -> None:
        """Keep what the method was compared with."""
        self.write_json(BASELINES, {"fingerprint": fingerprint, "baselines": [asdict(entry) for entry in baselines]})

    def read_failure(self) -> str | None:
        """Why a trial's run ended without a result; None where it did not."""
        return self.read(FAILURE).decode() if self.exists(FAILURE) else None

    def _read_json_or(self, name: str, otherwise: Any) -> Any:
        return self.read_json(name) if self.exists(name) else otherwise


def versions() -> dict[str, str]:
    """The versions of coreg-ray, Python and the packages that decide results here."""
    installed = {"coreg_ray": __version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # the core runs without Ray and open_clip
            continue
    return installed
