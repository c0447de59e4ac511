"""The method's state on disk: written by every process, read at any world size, without unpickling anything.

checkpoints/epoch-000012/
    network_a.safetensors   student, momentum; of the memory what the team has in common   (replica 0 of network a)
    rows_a_0.safetensors    of the memory what belongs to this replica, by row number      (every replica)
    state.json              epoch, fingerprint, classes, architecture, method's kind, history  (rank 0)
    manifest.json           size and digest of every file (manifest.py); written last, so that a folder with it is whole
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from coreg_ray.errors import UserError
from coreg_ray.metrics import COMBINED, EPOCH, NETWORKS
from coreg_ray.run.storage import Folder
from coreg_ray.training import manifest
from coreg_ray.training.manifest import STATE, Entry, fault, network_file, read_file, rows_file
from coreg_ray.training.mesh import Mesh
from coreg_ray.training.remembered import below, common_tensors, restore_common, restore_rows, row_tensors
from coreg_ray.training.state import Learner, State

log = logging.getLogger(__name__)


def save(state: State, folder: Folder, fingerprint: str, mesh: Mesh) -> Folder:
    """Write the state after epoch `state.epoch - 1` below `folder`; every process calls this. Returns its folder.

    Raises:
        UserError: on every process alike: a disk is full, or the nodes do not share one.
    """
    target = folder / f"epoch-{state.epoch - 1:06d}"
    with mesh.together():
        if mesh.rank == 0:
            target.delete()
    names, mine = manifest.tensor_files(mesh.replicas), manifest.no_entries(mesh.replicas)

    def write(name: str, tensors: dict[str, Tensor]) -> None:
        content = save_tensors(tensors)
        target.write(name, content)
        mine[names.index(name)] = Entry.of(content).as_row()

    with mesh.together():
        for learner in state.learners:
            if mesh.replica == 0:
                write(network_file(learner.name), _network_tensors(learner))
            write(rows_file(learner.name, mesh.replica), _row_tensors(learner, state))
    rows = mesh.world_sum(mine)
    with mesh.together():
        if mesh.rank == 0:
            description = manifest.as_json(_description(state, fingerprint, mesh))
            target.write(STATE, description)
            entries = {name: Entry.from_row(row) for name, row in zip(names, rows, strict=True)}
            manifest.write_manifest(target, entries | {STATE: Entry.of(description)})
    return target


def newest(folder: Folder, digests: bool = False) -> Folder | None:
    """The newest whole checkpoint below `folder`; says which newer ones are cut short and passed over.

    Args:
        digests: files are read and compared with what was written, not only their sizes.

    Raises:
        UserError: a later version wrote it.
    """
    for name in reversed([name for name in folder.entries() if name.startswith("epoch-")]):
        reason = fault(folder / name, digests)
        if reason is None:
            return folder / name
        log.warning("checkpoint %s is not whole (%s); taking the one before it", (folder / name).path, reason)
    return None


def prune(folder: Folder, keep: int) -> None:
    """Keep the `keep` newest whole checkpoints and the best one by what needs no labels; the manifest goes first."""
    names = [name for name in folder.entries() if name.startswith("epoch-") and fault(folder / name) is None]
    kept = set(names[-keep:])
    if names:
        history = (folder / names[-1]).read_json(STATE)["history"]
        scores = {f"epoch-{figures[EPOCH]:06d}": figures.get(COMBINED, -1.0) for figures in history}
        kept.add(max(names, key=lambda name: (scores.get(name, -1.0), name)))
    for name in names:
        if name not in kept:
            (folder / name).delete(manifest.MANIFEST)
            (folder / name).delete()


def describe(checkpoint: Folder) -> dict[str, Any]:
    """What `state.json` says: epoch, fingerprint, classes, student, replicas, history.

    Raises:
        UserError: the folder is no whole checkpoint.
    """
    reason = fault(checkpoint)
    if reason is not None:
        raise UserError(
            f"{checkpoint.path} is no whole checkpoint ({reason}); give a folder like checkpoints/epoch-000012"
        )
    return checkpoint.read_json(STATE)


def resume(state: State, checkpoint: Folder, mesh: Mesh) -> None:
    """Continue exactly where `checkpoint` was written, at this or any other world size. Changes `state` in place.

    Raises:
        UserError: it holds other classes or another architecture, or a file of it has been damaged.
    """
    description, weights = _read_networks(state, checkpoint)
    if _kind(description) != state.method.kind:
        raise UserError(
            f"{checkpoint.path} was trained by method.kind={_kind(description)}, this run is method.kind="
            f"{state.method.kind}; give that kind, or pass it with --start_from to another --output"
        )
    for learner in state.learners:
        _restore_network(learner, weights[learner.name], weights[NETWORKS[1 - learner.network]])
        parts = [
            load_tensors(read_file(checkpoint, rows_file(learner.name, replica)))
            for replica in range(description["replicas"])
        ]
        restore_rows(learner.memory, parts, state.numbers, state.sizes, mesh)
    state.epoch = description["epoch"] + 1
    state.history = description["history"]


def _read_networks(state: State, checkpoint: Folder) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """What the checkpoint says of itself, and the tensors of both networks by name; other networks are refused."""
    description = describe(checkpoint)
    _refuse_other_network(state, description, checkpoint)
    return description, {name: load_tensors(read_file(checkpoint, network_file(name))) for name in NETWORKS}


def locate(folder: Folder) -> Folder:
    """The checkpoint that a person means by its own folder, or by a run folder, whose newest whole one is taken."""
    return (newest(folder / "checkpoints") if folder.exists("checkpoints") else None) or folder


def start_from(state: State, checkpoint: Folder) -> None:
    """Take both networks' weights and nothing else: schedules begin anew. Changes `state` in place.

    Raises:
        UserError: it holds other classes or another architecture, or a file of it has been damaged.
    """
    description, weights = _read_networks(state, checkpoint)
    kind = _kind(description)
    if kind != state.method.kind:
        log.info(
            "%s was trained by method.kind=%s; its networks are taken, and %s trains on", checkpoint.path, kind,
            state.method.kind,
        )  # fmt: skip
    for learner in state.learners:
        for student, name in ((learner.student, learner.name), (learner.peer, NETWORKS[1 - learner.network])):
            student.load_state_dict(below(weights[name], "student."))


def _kind(description: dict[str, Any]) -> str:
    """The kind of method that wrote a checkpoint; those that do not say it are Co-Reg's."""
    return str(description.get("method", "coreg"))


def _description(state: State, fingerprint: str, mesh: Mesh) -> dict[str, Any]:
    return {
        "format": manifest.FORMAT,
        "epoch": state.epoch - 1,
        "fingerprint": fingerprint,
        "seed": state.seed,
        "classes": state.class_names,
        "student": _architecture(state),
        "method": state.method.kind,
        "replicas": mesh.replicas,
        "history": state.history,
    }


def _architecture(state: State) -> dict[str, Any]:
    names = ("name", "width", "resolution", "projection")
    heads = ("frozen",) if state.student.on_features else ()  # which checkpoints of whole networks never named
    return {name: getattr(state.student, name) for name in (*names, *heads)}


def _refuse_other_network(state: State, description: dict[str, Any], checkpoint: Folder) -> None:
    class_names = description["classes"]
    if class_names != state.class_names:
        raise UserError(
            f"{checkpoint.path} knows {len(class_names)} classes ({', '.join(class_names[:3])}, ...), this run "
            f"has {len(state.class_names)} ({', '.join(state.class_names[:3])}, ...); give the same names in the same "
            "order"
        )
    if description["student"] != _architecture(state):
        raise UserError(
            f"{checkpoint.path} holds the network {description['student']}, this run asks for {_architecture(state)}; "
            "set the student section alike or choose another checkpoint"
        )


def _network_tensors(learner: Learner) -> dict[str, Tensor]:
    tensors = {f"student.{name}": tensor for name, tensor in learner.student.state_dict().items()}
    tensors |= common_tensors(learner.memory)
    for name, parameter in learner.student.named_parameters():
        momentum = learner.optimizer.momenta.get(parameter)
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _row_tensors(learner: Learner, state: State) -> dict[str, Tensor]:
    return row_tensors(learner.memory, state.numbers, state.sizes)


def _restore_network(learner: Learner, own: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    learner.student.load_state_dict(below(own, "student."))
    learner.peer.load_state_dict(below(other, "student."))
    restore_common(learner.memory, own, learner.student)
    momentum = below(own, "momentum.")
    for name, parameter in learner.student.named_parameters():
        if name in momentum:
            learner.optimizer.momenta[parameter] = torch.empty_like(parameter).copy_(momentum[name])
