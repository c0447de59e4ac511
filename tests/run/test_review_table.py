"""review.csv as people and spreadsheets leave it: labels go into their cells, and all else stays to the byte."""

from __future__ import annotations

import pytest

from coreg_ray.run.review_table import ReviewTable


def parsed(content: bytes) -> ReviewTable:
    table = ReviewTable.parse(content)
    assert table is not None
    return table


def test_labels_go_into_their_cells_and_other_rows_stay_to_the_byte() -> None:
    there = b'image_id,label,note\n"a,b.png",,"two\nlines"\n"c.png",dog,x\nd.png,,\n'
    after = parsed(there).with_labels({"d.png": "cat", "c.png": "dog"})
    assert after == b'image_id,label,note\n"a,b.png",,"two\nlines"\n"c.png",dog,x\nd.png,cat,\n'
    assert parsed(after).labels() == {"a,b.png": "", "c.png": "dog", "d.png": "cat"}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_marks_and_line_ends_are_the_persons_own(end: str) -> None:
    there = f"\ufefflabel,image_id,remark{end},b.png,sure{end}dog,z.png".encode()
    after = parsed(there).with_labels({"b.png": "=cat", "z.png": "", "new.png": "fox", "gone.png": ""})
    assert after.decode() == f"\ufefflabel,image_id,remark{end}'=cat,b.png,sure{end},z.png,{end}fox,new.png,{end}"
    assert parsed(after).labels() == {"b.png": "=cat", "z.png": "", "new.png": "fox"}


def test_a_label_taken_back_leaves_an_empty_cell() -> None:
    assert parsed(b"image_id,label\na,cat\n").with_labels({"a": ""}) == b"image_id,label\na,\n"


def test_an_image_in_two_rows_gets_its_label_in_both() -> None:
    """One label each would be refused as two labels of one image."""
    assert parsed(b"image_id,label\na,\na,dog\n").with_labels({"a": "cat"}) == b"image_id,label\na,cat\na,cat\n"


def test_rows_that_end_early_are_filled_up() -> None:
    assert (
        parsed(b"image_id,note,label\na\n\nb,x\n").with_labels({"a": "cat"}) == b"image_id,note,label\na,,cat\n\nb,x\n"
    )


def test_an_empty_file_begins_a_table() -> None:
    assert parsed(b"").with_labels({"a": "cat"}) == b"image_id,label\na,cat\n"


@pytest.mark.parametrize(
    "content", [b"image_id;label\na;cat\n", b"a,b\n", b'image_id,label\n"a,\n', b"image_id,label\na,b,c\n", b"\xff"]
)
def test_what_is_no_such_table_is_none(content: bytes) -> None:
    assert ReviewTable.parse(content) is None
