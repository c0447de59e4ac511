"""One training run on one process of the mesh, from the tables in the run folder to the last checkpoint. Ray-free."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from coreg_ray.config import Config
from coreg_ray.config.tree import as_older_versions, digest
from coreg_ray.errors import UserError
from coreg_ray.images.paper_sets import explicit_student
from coreg_ray.pure.label_free import ENOUGH
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.memory import physical_memory
from coreg_ray.run.records import CandidateManifest
from coreg_ray.run.storage import Folder
from coreg_ray.training import checkpoint
from coreg_ray.training.embeddings import labels_of_prompt, space_of
from coreg_ray.training.evaluate import Scored
from coreg_ray.training.features import kept_features
from coreg_ray.training.fit import Epoch, fit
from coreg_ray.training.history import History
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.method import Method
from coreg_ray.training.neighbours import nearest
from coreg_ray.training.read_rows import Selection, load_images, load_rows
from coreg_ray.training.read_sets import Wanted
from coreg_ray.training.rows import Images, Rows
from coreg_ray.training.state import State, build_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What a training run learns: made by annotation, read by every process.

    Attributes:
        class_names: K. images: how many the pool has. prior: (K,) or None for uniform.
        fingerprint: of configuration and annotation together, wherever files lie: drivers and workers see them at
            different paths.
        older_fingerprints: what versions without some of today's settings called the same run, or one with candidate
            sets that were known by other names and are the same.
    """

    class_names: list[str]
    images: int
    prior: Tensor | None
    fingerprint: str
    older_fingerprints: tuple[str, ...] = ()

    @classmethod
    def read(cls, config: Config, run: RunFolder) -> Task:
        """From the manifest of the run folder's candidate sets.

        Raises:
            UserError: nothing was annotated there, features are missing or others, or the prior is none for these
                classes.
        """
        manifest = run.read_candidate_manifest()
        if manifest is None:
            raise UserError(
                f"{run.path} has no candidates/; annotate first (coreg-ray annotate, or coreg-ray pipeline)"
            )
        class_names = list(manifest.class_names)
        rows = run.read_rows_manifest("pool")
        prior = _prior(config.method.prior, manifest)
        settings = config.decisive(start=False)
        if prior is not None and config.method.prior != "annotator":
            settings["method"]["prior"] = prior.tolist()
        data = [class_names, rows.images if rows else ""]
        features = kept_features(config, run)
        data += [features.fingerprint] if features else []
        forms = [settings, *as_older_versions(settings)]
        fingerprint, *older = [digest([form, name, *data]) for form in forms for name in manifest.fingerprints]
        return cls(class_names, manifest.quality.rows, prior, fingerprint, tuple(older))

    def is_of(self, fingerprint: str) -> bool:
        """Whether a checkpoint of that fingerprint is this run's."""
        return fingerprint in (self.fingerprint, *self.older_fingerprints)


def _prior(given: str, manifest: CandidateManifest) -> Tensor | None:
    """The class prior (K,) that `method.prior` names; classes that the annotator never expects keep a trace of it."""
    if given == "uniform":
        return None
    if given == "annotator":
        return torch.tensor(manifest.prior, dtype=torch.float32).clamp(min=1e-6)
    try:
        folder, name = Folder.of_file(given)
        prior = torch.tensor(folder.read_json(name), dtype=torch.float32)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"method.prior={given} is no JSON list of numbers ({error}); give uniform, annotator or such a file"
        ) from error
    num_classes = len(manifest.class_names)
    if prior.shape != (num_classes,) or not bool((prior >= 0).all()) or not float(prior.sum()) > 0:
        raise UserError(
            f"method.prior={given} holds {prior.numel()} numbers; it needs one for each of the {num_classes} classes, "
            "none negative and not all zero"
        )
    return prior


def train(
    config: Config, mesh: Mesh, method: Method, clone_from: Folder | None = None, compared: bool = False
) -> Iterator[Epoch]:
    """Train this process's part of a run; yields after every epoch, once its checkpoint and history are written.

    Continues from the newest whole checkpoint of the same fingerprint in the run folder, else from `clone_from`, else
    from `start_from`, else from the beginning.

    Args:
        method: a module of `methods/`. clone_from: checkpoint of a run with other settings of the method, whose whole
            state this one takes over at the epoch where it stood (population based training). compared: whether runs
            are compared after every epoch, so that all criteria have to be known then.

    Raises:
        UserError: the folder's checkpoints belong to another run, or were trained on other candidate sets or images, or
            are for other classes or networks.
        NonFiniteLossError: on every process alike; the last good checkpoint stays.
    """
    run, settings = RunFolder.at(config.output), config.method.whole()
    with mesh.together():
        task = Task.read(config, run)
        rows, scored = load_data(config, run, task, mesh, compared)
        space = space_of(config, run, rows)
    neighbours = None if space is None else nearest(space, settings.neighbours, mesh)
    with mesh.together():  # the weights to start from may lie on some nodes only
        student = explicit_student(config)
        prior, remember = task.prior, method.remember
        state = build_state(settings, student, config.seed, task.class_names, rows, mesh, remember, prior, neighbours)
    begin(state, config, run, task, mesh, clone_from)
    if settings.learns_from == "soft" and mesh.rank == 0:
        log.info("soft labels: %s", soft_labels_in_words(config))
    with History(run, enabled=mesh.rank == 0, settings=config.settings()) as history:
        for epoch in fit(state, rows, scored, mesh, method):
            last = epoch.number + 1 == settings.epochs
            saves = last or (epoch.number + 1) % config.checkpoint.every == 0
            if saves:
                checkpoint.save(state, run.checkpoints, task.fingerprint, mesh)
            with mesh.together():
                if saves and mesh.rank == 0:
                    checkpoint.prune(run.checkpoints, config.checkpoint.keep)
                history.write(state.history)
            yield epoch


def soft_labels_in_words(config: Config) -> str:
    """What the shares of classes are that a method learns from: what made them is what the annotators gave."""
    if config.method.distil.prompt is not None:
        return f"the probabilities of the prompt {config.method.distil.prompt!r}"
    if config.candidates.mode == "label_model":
        return "the label model's posterior"
    if any(one.kind == "clip" or (one.kind == "votes" and one.scores != "votes") for one in config.annotators):
        return "the mean of the annotators' probabilities"
    return "shares of the votes, since no annotator gave probabilities"


def begin(
    state: State, config: Config, run: RunFolder, task: Task, mesh: Mesh, clone_from: Folder | None = None
) -> None:
    """Put `state` where the run stands: at its newest checkpoint, `clone_from`, `start_from`, or the beginning.

    Rank 0 chooses the checkpoint, since others may see another state of the folder.

    Raises:
        UserError: as `train`, on every process alike.
    """
    own = mesh.decide(lambda: _own_checkpoint(run, task))
    start = None
    if own is None and clone_from is None and config.start_from:
        given = RunFolder.at(config.start_from)
        start = Folder(given.filesystem, mesh.decide(lambda: checkpoint.locate(given).path) or given.path)
    with mesh.together():  # what is read may lie on some nodes only
        if own is not None:
            checkpoint.resume(state, run.checkpoints / own, mesh)
            log.info("continuing after epoch %d of %s", state.epoch - 1, (run.checkpoints / own).path)
        elif clone_from is not None:
            checkpoint.resume(state, clone_from, mesh)
            log.info("taking over after epoch %d of %s", state.epoch - 1, clone_from.path)
        elif start is not None:
            checkpoint.start_from(state, start)
            log.info("starting from the networks of %s", config.start_from)


def _own_checkpoint(run: RunFolder, task: Task) -> str | None:
    """The name of the newest whole checkpoint of a run. Raises UserError as `refuse_other_run` does."""
    newest = checkpoint.newest(run.checkpoints, digests=True)
    if newest is None:
        return None
    refuse_other_run(run, task, checkpoint.describe(newest)["fingerprint"])
    return newest.name


def refuse_other_run(run: RunFolder, task: Task, fingerprint: str) -> None:
    """Raises UserError where a checkpoint of that fingerprint was trained on something else than the run holds now."""
    if not task.is_of(fingerprint):
        raise UserError(
            f"{run.path} holds checkpoints of another run (fingerprint {fingerprint}, this is {task.fingerprint}): its "
            "settings were others, or its candidate sets (manual labels, votes, class names) or images have changed "
            f"since; choose another --output, or pass the old checkpoint with --start_from (--start_from {run.path} "
            "takes over its networks), or give it back what it was trained on and the same command again"
        )


def load_data(config: Config, run: RunFolder, task: Task, mesh: Mesh, compared: bool = True) -> tuple[Rows, Scored]:
    """This replica's training rows, and the images that every process scores; `compared` as of `train`."""
    side, holdout = config.student.resolution, config.source.holdout
    # Ray Train says how many of its workers share this machine; each holds images of its own.
    limit = config.cluster.memory_share * physical_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    enough = min(1.0, ENOUGH / max(1, task.images))

    features = kept_features(config, run)

    def select(selection: Selection, labels: Literal["candidates", "single", "soft"] = "candidates") -> Rows:
        which = Wanted(config.candidates.weighted, labels)
        return load_rows(run, len(task.class_names), side, selection, limit, features, which)

    own, prompt = Selection(mesh.replica, mesh.replicas, start=holdout), config.method.distil.prompt
    rows = select(own, config.method.learns_from if prompt is None else "candidates")
    if prompt is not None:
        rows.soft = labels_of_prompt(run, prompt, rows)
    held_out = select(Selection(end=holdout)) if holdout else None
    shown = select(Selection(start=holdout, end=enough)) if 0 < holdout < enough else None
    test = load_images(run, "test", side, Selection(), limit, features) if config.test.kind else None
    _to_device([rows, *(images for images in (held_out, shown, test) if images is not None)], mesh)
    return rows, Scored(held_out, test, shown, compared)


def _to_device(parts: list[Images], mesh: Mesh) -> None:
    """Images live on the GPU when all of them fit into half of its free memory."""
    if mesh.device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(mesh.device)
    size = sum(part.held.nbytes for part in parts)
    if size < free / 2:
        for part in parts:
            part.to(mesh.device)
    log.info("%.2f GB of images %s the GPU", size / 1e9, "on" if size < free / 2 else "stay off")
