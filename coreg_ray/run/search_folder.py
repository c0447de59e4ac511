"""The folder of a search: what its trials share, a run folder for each of them, and what came of it all.

SEARCH/                                   as a run folder, with the annotations that all trials share
    search.json                           which search this is
    tune/                                 Ray Tune's own record; a folder without it has no trial yet
    trials/<name>/                        a run folder each
    data/<mark>/, data/side-<px>/         candidate sets and rows that differ from the search's own
    trials.csv, trials.svg, best.yaml
"""

from __future__ import annotations

from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder

RECORD, TUNE, TRIALS, TABLE, PICTURE, BEST = "search.json", "tune", "trials", "trials.csv", "trials.svg", "best.yaml"


class SearchFolder(RunFolder):
    """One search on any file system."""

    @property
    def tune(self) -> Folder:
        return self / TUNE

    @property
    def trials(self) -> Folder:
        return self / TRIALS

    def trial(self, name: str) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.filesystem, (self.trials / name).path)

    def data(self, mark: str) -> RunFolder:
        """A run folder for data that some trials share and others do not."""
        return RunFolder(self.filesystem, (self / "data" / mark).path)

    def rows_at(self, side: int, own: int) -> RunFolder:
        """The run folder whose `rows/` hold the images at `side` pixels; `own`: the side of the search's own."""
        return RunFolder(self.filesystem, self.path) if side == own else self.data(f"side-{side}")
