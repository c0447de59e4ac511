"""What methods learn from, as it is read from stored candidate sets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from coreg_ray.annotation.arrow import lists
from coreg_ray.errors import UserError
from coreg_ray.training.read_sets import Wanted, read_sets

SIZES = np.array([1, 3, 2, 1])


def stored(*without: str) -> pa.Table:
    """Four rows: one candidate; three, of which the second scores highest; two alike; and a manual label."""
    table = pa.table(
        {
            "row": np.array([5, 9, 2, 7]),
            "candidates": lists(SIZES, np.array([3, 0, 1, 4, 2, 4, 1], np.int32)),
            "scores": lists(SIZES, np.array([0.5, 0.2, 0.6, 0.1, 0.3, 0.3, 0.0], np.float16)),
            "weights": lists(SIZES, np.array([1, 0.5, 1, 0.25, 1, 1, 1], np.float16)),
            "soft_classes": lists(np.full(4, 2), np.array([3, 0, 1, 0, 2, 4, 0, 1], np.int32)),
            "soft_shares": lists(np.full(4, 2), np.array([0.9, 0.1, 0.6, 0.2, 0.5, 0.4, 0.8, 0.1], np.float16)),
            "trusted": [False, False, False, True],
            "excluded": [False, False, False, False],
        }
    )
    return table.drop_columns(list(without))


def test_a_single_label_is_the_one_that_scores_highest_the_lowest_of_equals() -> None:
    sets = read_sets(iter(stored().to_batches()), Wanted(weighted=True, labels="single"), "runs/x")
    assert sets.indices.tolist() == [3, 1, 2, 1]
    assert sets.sizes.tolist() == [1, 1, 1, 1]
    assert sets.weights is None


def test_soft_labels_come_beside_the_sets_and_a_manual_label_is_certain() -> None:
    sets = read_sets(iter(stored().to_batches()), Wanted(labels="soft"), "runs/x")
    assert sets.sizes.tolist() == SIZES.tolist()
    assert sets.soft is not None
    dense = sets.soft.dense(np.arange(4), 5, "cpu")  # type: ignore[arg-type]
    assert dense[3].tolist() == [0, 1, 0, 0, 0]
    assert dense[1].tolist() == pytest.approx([0.2, 0.6, 0.2 / 3, 0.2 / 3, 0.2 / 3], abs=1e-3)


def test_a_manual_label_is_certain_also_where_it_was_not_among_the_largest_shares() -> None:
    table = stored()
    classes = lists(np.full(4, 2), np.array([3, 0, 1, 0, 2, 4, 0, 2], np.int32))
    table = table.set_column(table.schema.get_field_index("soft_classes"), "soft_classes", classes)
    sets = read_sets(iter(table.to_batches()), Wanted(labels="soft"), "runs/x")
    assert sets.soft is not None
    assert sets.soft.dense(np.array([3]), 5, "cpu")[0].tolist() == [0, 1, 0, 0, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "lacking"),
    [(Wanted(labels="soft"), "soft_shares"), (Wanted(labels="single"), "scores"), (Wanted(weighted=True), "weights")],
)
def test_sets_of_an_earlier_version_are_named_with_what_they_lack(wanted: Wanted, lacking: str) -> None:
    with pytest.raises(UserError, match=rf"runs/x: .*an earlier version's and lack {lacking}; remove candidates/"):
        read_sets(iter(stored(lacking).to_batches()), wanted, "runs/x")
    assert (
        read_sets(iter(stored(lacking, "excluded").to_batches()), Wanted(), "runs/x").sizes.tolist() == SIZES.tolist()
    )
