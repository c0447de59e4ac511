"""What functions of the Python API hand back: small frozen objects that show themselves in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coreg_ray.commands.configured import configured
from coreg_ray.commands.labels import LabelsCommand, config_of, read_labels, written_labels
from coreg_ray.errors import UserError
from coreg_ray.run.uris import extended, without_credentials

if TYPE_CHECKING:
    import pyarrow as pa

    from coreg_ray.config import Config
    from coreg_ray.deploy.model import Model
    from coreg_ray.run.history import Epochs

_SHOWN = 10  # rows of a table in a notebook
Format = Literal["csv", "parquet", "imagefolder", "huggingface", "cleanlab"]
Whose = Literal["auto", "both", "annotator"]


@dataclass(frozen=True, repr=False)
class Run:
    """A run by its folder, whatever has become of it; nothing of it is kept in memory.

    Attributes:
        folder: a path or a URI.
    """

    folder: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", str(self.folder))

    @property
    def state(self) -> str:
        """Where it stands, in one line. Raises UserError: the folder is no run."""
        from coreg_ray.report.overview import overview  # late: a notebook that only trains needs no pyarrow yet

        return overview(self.folder).state

    @property
    def config(self) -> Config:
        """The settings that it was begun with. Raises UserError: the folder is no run."""
        from coreg_ray.run.folder import RunFolder

        config_of(self.folder)
        config = RunFolder.at(self.folder).read_config()
        assert config is not None
        return config

    @property
    def figures(self) -> dict[str, Any]:
        """What `metrics.json` holds, by name; empty where there is none yet."""
        from coreg_ray.run.folder import RunFolder

        return RunFolder.at(self.folder).read_metrics()

    @property
    def history(self) -> Epochs:
        """The figures of every epoch by name, oldest first; `pandas.DataFrame(run.history)` makes a table of them."""
        from coreg_ray.run.folder import RunFolder

        return RunFolder.at(self.folder).read_history()

    @property
    def report(self) -> str:
        """Where `report.html` lies."""
        return extended(self.folder, "/report.html")

    def model(self, device: str = "cpu") -> Model:
        """The trained model. Raises UserError: there is none yet."""
        from coreg_ray.deploy.model import Model

        return Model.load(extended(self.folder, "/model"), device)

    def labels(
        self,
        output: str | Path | None = None,
        *,
        format: Format = "parquet",
        status: str | Iterable[str] | None = None,
        min_probability: float = 0.0,
        whose: Whose = "auto",
        pictures: Literal["copy", "link"] = "copy",
    ) -> Labels:
        """The labels of the pool, as `coreg-ray labels` writes them.

        Args:
            output: file or folder to write them to as well. format: of what is written. status: those that are kept
                (trusted, clean, doubtful, outlier); None: all. min_probability: least probability that is kept.
            whose: `both`: votes and networks together; `auto`: the annotator's own where those are not to be trusted.
            pictures: whether pictures are copied into what is written, where the format has any.

        Raises:
            UserError: nothing was annotated there, no label is left, or something lies at `output`.
        """
        from coreg_ray.run.folder import RunFolder

        given: dict[str, Any] = {
            "config": config_of(self.folder),
            "format": format,
            "min_probability": min_probability,
            "whose": whose,
            "pictures": pictures,
            "output": str(output or self.folder),
        }
        if status is not None:
            given["status"] = status if isinstance(status, str) else ",".join(status)
        config = configured(given, LabelsCommand)
        labels = read_labels(RunFolder.at(self.folder), self.folder, config)
        labels.refuse_none()
        if output is not None:
            written_labels(labels, config)
        import pyarrow as pa

        told = "votes and networks together" if labels.purified else "the annotator's own"
        table = pa.concat_tables(labels.tables())
        return Labels(self.folder, table, told, dict(labels.counts()), None if output is None else str(output))

    def __repr__(self) -> str:
        return f"Run({_plain(self.folder)!r}: {self._standing()[0]})"

    def _repr_html_(self) -> str:
        state, rows = self._standing()
        return f"<b>run</b> <code>{escape(_plain(self.folder))}</code><br>{escape(state)}{_as_html((), rows)}"

    def _standing(self) -> tuple[str, list[tuple[str, str]]]:
        """State and figures; what is no run says so, since an object that cannot be shown helps nobody."""
        from coreg_ray.report.overview import as_figure, overview

        try:
            stands = overview(self.folder)
        except UserError as error:
            return _plain(str(error)), []
        return stands.state, [(name, as_figure(value)) for name, value in stands.figures.items()]


@dataclass(frozen=True, repr=False)
class Labels:
    """Labels of a run's pool.

    Attributes:
        folder: of the run. table: one row an image, with the columns of `purified/`; `table.to_pandas()` where pandas
            is there. whose: who gave them, in words. counts: by status, of all labels, kept or not. written: where they
            were written to.
    """

    folder: str
    table: pa.Table
    whose: str
    counts: dict[str, int] = field(default_factory=dict)
    written: str | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"Labels({self._line()})"

    def _repr_html_(self) -> str:
        names = ("image_id", "label", "status", "probability")
        rows = [[_cell(row[name]) for name in names] for row in self.table.slice(0, _SHOWN).to_pylist()]
        return f"<b>labels</b> {escape(self._line())}{_as_html(names, rows)}"

    def _line(self) -> str:
        where = f", written to {_plain(self.written)}" if self.written else ""
        return f"{len(self):,} of {sum(self.counts.values()):,} images of {_plain(self.folder)}; {self.whose}{where}"


@dataclass(frozen=True, repr=False)
class Comparison:
    """What came of a comparison.

    Attributes:
        folder: of the run. rows: the lines of `comparison.csv`, a run each. conclusion: what the figures allow to say.
        table: rows over their seeds, for a terminal.
    """

    folder: str
    rows: list[dict[str, Any]]
    conclusion: str
    table: str

    @property
    def page(self) -> str:
        """Where `comparison.html` lies."""
        return extended(self.folder, "/comparison.html")

    def run(self, name: str, seed: int = 0) -> Run:
        """The run of a row. Raises UserError: there is no such row."""
        from coreg_ray.run.comparison import RUNS

        known = [(str(row["name"]), row["seed"]) for row in self.rows]
        if (name, seed) not in known:
            raise UserError(f"no run {name!r} with seed {seed}; there are {', '.join(f'{n} {s}' for n, s in known)}")
        return Run(extended(self.folder, f"/{RUNS}/{name}-{seed}"))

    def __repr__(self) -> str:
        return f"Comparison({_plain(self.folder)!r}: {self.conclusion})"

    def _repr_html_(self) -> str:
        names = ("name", "kind", "labels", "seed", "status", "test/accuracy", "criterion/combined", "time/train_s")
        rows = [[_cell(row.get(name)) for name in names] for row in self.rows]
        return f"<b>comparison</b> {escape(self.conclusion)}{_as_html(names, rows)}"


def _plain(text: str) -> str:
    return str(without_credentials(text))


def _cell(value: Any) -> str:
    from coreg_ray.report.overview import as_figure

    return "" if value is None else value if isinstance(value, str) else as_figure(value)


def _as_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, which are escaped; nothing where there is no row."""
    top = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{top}{body}</table>" if rows else ""
