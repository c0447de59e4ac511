"""Images that nobody has answered for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coreg_ray.annotation.answered import unanswered
from coreg_ray.ids import row_numbers
from coreg_ray.run.storage import Folder


def write(folder: Folder, name: str, columns: dict[str, Any]) -> None:
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    folder.write(name, content.getvalue())


@pytest.mark.parametrize(
    ("voted", "rejected", "open_ones"),
    [
        ("", "", 4),
        ("abcd", "", 0),
        ("ab", "cd", 0),
        ("abc", "", 1),
        ("abcd", "d", 0),
        ("abc", "bc", 1),
        ("", "abcd", 0),
    ],
)
def test_an_image_with_votes_and_a_reject_counts_once(
    tmp_path: Path, voted: str, rejected: str, open_ones: int
) -> None:
    candidates, rejects = Folder.at(tmp_path / "candidates"), Folder.at(tmp_path / "rejects")
    candidates.write("manifest.json", "{}")
    for number, name in enumerate(voted):
        write(candidates, f"{number}.parquet", {"row": row_numbers([name])})
    if rejected:
        write(rejects, "0.parquet", {"image_id": list(rejected), "reason": ["?"] * len(rejected)})
    assert unanswered(4, candidates, rejects) == open_ones
