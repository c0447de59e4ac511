"""What a search is, beside the configuration that it varies; and whose a search folder is. Ray-free."""

from __future__ import annotations

import json
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from coreg_ray.config import Config, Section
from coreg_ray.config.older import completed
from coreg_ray.config.texts import changed, flattened
from coreg_ray.errors import UserError
from coreg_ray.search.objective import DEFAULT, check_objective
from coreg_ray.search.space import Space

if TYPE_CHECKING:
    from coreg_ray.run.search_folder import SearchFolder
    from coreg_ray.run.storage import Folder

log = logging.getLogger(__name__)

_STATE = "experiment_state-"  # files of Tune's own
# What may change in the state of another trial that goes on: no shape, no length, no data.
_SHAPES = ("method.kind", "method.epochs", "method.queue_size", "method.loss_history")
OF_FEATURES = tuple(f"student.{name}" for name in ("frozen", "frozen_views", "name", "pretrained", "flip", "views"))


class Search(Section):
    """How configurations are tried; the names and their meaning are Ray Tune's."""

    space: str | None = Field(None, description="YAML file of what is varied; empty: the packaged one")
    num_samples: int = Field(6, ge=1, description="trials; with grids: trials for each point of the grid")
    scheduler: Literal["asha", "median", "pbt", "fifo"] = Field(
        "asha", description="which trials stop early; pbt: which go on from another's state; fifo: none"
    )
    search: Literal["random", "optuna"] = Field("random", description="who chooses the next trial's values")
    max_concurrent: int | None = Field(None, ge=1, description="trials at once; empty: as many as the cluster holds")
    objective: str = Field(DEFAULT, description="what is maximised: criterion/* need no labels, test/accuracy does")
    grace_period: int | None = Field(None, ge=1, description="epochs before a trial may stop; empty: a fifth")
    reduction_factor: float = Field(3, gt=1, description="asha: one in so many trials goes on at each rung")
    perturbation_interval: int | None = Field(None, ge=1, description="pbt: epochs between changes; empty: a fifth")
    resume: bool = Field(
        False, description="go on with the search that --output holds; unpickles what lies there, so only with your own"
    )
    mlflow: str | None = Field(None, description="MLflow tracking URI that trials are logged to")
    wandb: str | None = Field(None, description="Weights & Biases project that trials are logged to")

    def check(self, config: Config, space: Space) -> None:
        """Refuse what cannot work together.

        Raises:
            UserError: an objective without its images, a scheduler or searcher that cannot handle the space, candidate
                sets of several annotators or features that differ by trial, a package that is not installed.
        """
        check_objective(self.objective, config)
        made = [key for key in space.keys if key.startswith("candidates.") or key == "source.prompts"]
        if made and config.further_annotators:
            raise UserError(
                f"{', '.join(made)} cannot be searched over with further_annotators: trials would wait for CPUs that "
                "they hold themselves; search with one annotator, or once for each setting"
            )
        shared = [key for key in space.keys if key in OF_FEATURES]
        if shared and (config.student.on_features or "student.frozen" in shared):
            raise UserError(
                f"{shared[0]} cannot be searched over: features of a frozen backbone depend on it, and all trials "
                "share them; search once for each of its values, with an --output of its own"
            )
        if self.search == "optuna":
            grids = [dimension.key for dimension in space.dimensions if dimension.kind == "grid"]
            if grids:
                raise UserError(
                    f"search=optuna takes no grid ({', '.join(grids)}); write choice, or use --search random"
                )
        if self.scheduler == "pbt":
            self._check_population(config, space)
        for name in ("optuna", "mlflow", "wandb"):
            in_use = self.search == "optuna" if name == "optuna" else getattr(self, name)
            if in_use and find_spec(name) is None:
                given = "--search optuna" if name == "optuna" else f"--{name}"
                raise UserError(f'{given} needs the package {name}; pip install "coreg-ray[{name}]"')

    def _check_population(self, config: Config, space: Space) -> None:
        if self.search != "random":
            raise UserError(f"scheduler=pbt draws and changes values itself; use --search random, not {self.search}")
        if config.cluster.num_workers > 1:
            raise UserError(
                f"scheduler=pbt with cluster.num_workers={config.cluster.num_workers}: a trial of several workers "
                "cannot take over another's state; use cluster.num_workers 1 or --scheduler asha"
            )
        shapes = [key for key in space.keys if not key.startswith("method.") or key in _SHAPES]
        if shapes:
            raise UserError(
                f"scheduler=pbt changes values while trials run, which {', '.join(shapes)} cannot; search over other "
                "keys of method, or use --scheduler asha"
            )

    def identity(self, config: Config, space: Space) -> dict[str, Any]:
        """All that makes this search the one that it is, and what Tune keeps from its beginning; where it runs and what
        a trial takes there is no part of it.
        """
        names = ("num_samples", "scheduler", "search", "objective", "grace_period", "reduction_factor")
        kept = ("max_concurrent", "mlflow", "wandb")
        own = {name: getattr(self, name) for name in (*names, "perturbation_interval", *kept)}
        own |= {f"cluster.{name}": getattr(config.cluster, name) for name in ("num_workers", "max_failures")}
        return json.loads(json.dumps({**own, "space": space.described(), "config": config.decisive()}))


def claim_search(search: Search, config: Config, space: Space, folder: SearchFolder) -> None:
    """Make the output folder this search's, or refuse it; before any work.

    A search whose first trial has not begun may be changed and begun again: its annotations are kept by their content.

    Raises:
        UserError: it cannot be read or written, holds something else, another search, or this one without `resume`; or
            with `resume` it is another user's.
    """
    from coreg_ray.run.claim import claim  # late: the command's --help needs no pyarrow
    from coreg_ray.run.search_folder import RECORD

    if search.resume:
        refuse_foreign(folder)
    identity = search.identity(config, space)

    def refuse_other(text: str) -> None:
        if folder.tune.exists():
            _refuse_other(search, config, identity, json.loads(text))

    if search.resume and not folder.exists(RECORD) and not folder.entries():
        raise UserError(f"--resume: --output {config.output} holds no search; leave --resume out to begin one")
    content = json.dumps(identity, indent=1, sort_keys=True) + "\n"
    claim(folder, config.output, holds="search", record=RECORD, content=content, check=refuse_other)
    folder.write_config(config)


def refuse_foreign(folder: SearchFolder) -> None:
    """Look at whose Tune's record is: going on with a search unpickles it, which runs what its author put there.

    Object stores know no owner; there whoever may write to the bucket is trusted.

    Raises:
        UserError: the output folder, or anything in Tune's own, belongs to another user.
    """
    if not folder.local:
        return
    me = os.geteuid()
    tune = Path(folder.tune.path)
    for path in (Path(folder.path), tune, *tune.rglob("*")):
        try:
            owner = path.lstat().st_uid
        except FileNotFoundError:
            continue
        if owner != me:
            raise UserError(
                f"--resume would unpickle {path}, which belongs to the user {owner} and not to you ({me}), and so run "
                "whatever that user put there; begin a search of your own in another --output, or have a trusted "
                "folder's files given to you (chown)"
            )


def is_restorable(trials: Folder) -> bool:
    """Whether Tune can go on from its record of the trials.

    It copies its state over the one before from time to time, and a kill may cut that. A state that was cut is removed,
    so that Tune takes an older one; where none is left, nothing is known of the trials, and they begin again.
    """
    for name in sorted((name for name in trials.entries() if name.startswith(_STATE)), reverse=True):
        try:
            trials.read_json(name)
        except ValueError:
            log.warning("%s/%s was cut when the search was killed; going on from the one before", trials.path, name)
            trials.delete(name)
        else:
            return trials.exists("tuner.pkl")
    trials.delete()
    return False


def _refuse_other(search: Search, config: Config, new: dict[str, Any], old: dict[str, Any]) -> None:
    old = {**old, "config": completed(old["config"])}  # an older version may have begun it
    before, now = (flattened(identity, descends=lambda key: key != "space") for identity in (old, new))
    differences = [difference.removeprefix("config.") for difference in changed(before, now)]
    if differences:
        raise UserError(
            f"--output {config.output} holds another search ({'; '.join(differences[:5])}); choose another --output, "
            "or give the settings that it was begun with"
        )
    if not search.resume:
        raise UserError(f"--output {config.output} holds this very search; add --resume to go on, or choose another")
