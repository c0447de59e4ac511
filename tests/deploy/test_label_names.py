"""Folder names for class names and file names for image ids, whatever these hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreg_ray.deploy.labels.names import file_name, folder_names, safe

RESERVED = ["con", "NUL", "com1", "LPT9.txt", "Aux"]


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".", "", ".hidden", "a\\b", "x:y", "end.", "end ", "\n", "a\0b", *RESERVED]
)
def test_what_is_no_name_becomes_one(name: str) -> None:
    made = safe(name)
    assert made != name
    assert safe(made) == made


@pytest.mark.parametrize("name", ["cat", "Great Dane", "größe", "犬", "a.b", "a-b_c", "com", "console"])
def test_what_is_a_name_stays(name: str) -> None:
    assert safe(name) == name


def test_classes_keep_their_names_where_they_can_and_none_shares_a_folder() -> None:
    made = folder_names(["a/b", "a_b", "Cat", "cat", "CAT", "..", "/", "dog"])
    assert made[1:4:2] == ["a_b", "cat-" + made[3][-8:]]
    assert made[2] == "Cat"
    assert made[-1] == "dog"
    assert len({name.casefold() for name in made}) == 8
    assert made == folder_names(["a/b", "a_b", "Cat", "cat", "CAT", "..", "/", "dog"])


@given(st.lists(st.text(max_size=120), unique=True, max_size=8))
def test_any_class_names_make_as_many_plain_folders(names: list[str]) -> None:
    made = folder_names(names)
    assert len({name.casefold() for name in made}) == len(names)
    for name in made:
        assert name
        assert not set(name) & set('/\\<>:"|?*\0\n')
        assert not name.startswith((".", " "))
        assert not name.endswith((".", " "))
        assert len(name.encode("utf-8", "replace")) <= 120


def test_images_of_one_name_in_several_folders_get_files_of_their_own() -> None:
    ids = ["a/1.png", "b/1.png", "a/b/1.png", "1.png", "../1.png", "/etc/1.png", "a\\1.png"]
    made = [file_name(image_id, ".png") for image_id in ids]
    assert len(set(made)) == len(ids)
    assert all(name.startswith("1-") and "/" not in name and name.endswith(".png") for name in made)
