"""Class names and prompts: files, lists, several names, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coreg_ray.annotation.vocabulary import questions, vocabulary
from coreg_ray.errors import UserError
from coreg_ray.images.paper_sets import PAPER_SETS


def test_text_and_yaml_files_give_the_same(tmp_path: Path) -> None:
    text, tree = tmp_path / "classes.txt", tmp_path / "classes.yaml"
    text.write_text("automobile|car\n\nplane \n", encoding="utf-8-sig")
    tree.write_text("classes: [[automobile, car], plane]")
    (tmp_path / "prompts.txt").write_text("a {}\nmy {}\n")
    one, other = (vocabulary("folder", str(path), [str(tmp_path / "prompts.txt")]) for path in (text, tree))
    assert one == other
    assert one.shown == ["automobile", "plane"]
    assert one.index() == {"automobile": 0, "car": 0, "plane": 1}
    assert one.prompts == ("a {}", "my {}")


def test_defaults_are_the_packaged_ones() -> None:
    assert len(vocabulary("folder", ["a", "b"], None).prompts) == 27
    assert vocabulary("digits", None, None).shown[3] == "three"
    assert len(PAPER_SETS["gtsrb"].class_names) == 43
    assert PAPER_SETS["cifar10"].class_names == ()
    assert vocabulary("torchvision", None, None, ("x", "y")).shown == ["x", "y"]
    assert all("{}" in question for question in questions(vocabulary("folder", ["a", "b"], None), None).prompts)


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        (["cat", "Cat"], "repeat"),
        ([["cat", "kitty"], ["dog", "kitty"]], "'kitty'"),
        (["cat", " "], "class 1 has an empty name"),
        (["cat", []], "empty name"),
        (["cat", "cat", "dog"], "repeat"),
        ("nowhere/classes.txt", "cannot be read"),
        (None, "does not name its classes"),
        (["cat", True], "class 1 is named True, which is no text; write its name in quotes"),
        ([["cat", 7], "dog"], "class 0 is named 7, "),
    ],
)
def test_wrong_class_names_are_refused(classes: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        vocabulary("folder", classes, ["a {}"])


@pytest.mark.parametrize("prompt", ["a photo", "a {} and {}", "a {name}", "{} {0}"])
def test_prompts_need_their_placeholder_once(prompt: str) -> None:
    with pytest.raises(UserError, match=r"needs \{\} exactly once"):
        vocabulary("folder", ["a", "b"], ["a {}", prompt])


@pytest.mark.parametrize("word", ["yes", "off", "null", "7", "2024-01-01"])
def test_words_that_yaml_takes_for_values_are_refused_unless_in_quotes(tmp_path: Path, word: str) -> None:
    (tmp_path / "classes.yaml").write_text(f"[cat, {word}]")
    with pytest.raises(UserError, match=r"class 1 is named .*, which is no text; write its name in quotes"):
        vocabulary("folder", str(tmp_path / "classes.yaml"), None)
    (tmp_path / "classes.yaml").write_text(f"[cat, '{word}']")
    assert vocabulary("folder", str(tmp_path / "classes.yaml"), None).shown == ["cat", word]


def test_a_file_that_holds_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text("cats: 3")
    with pytest.raises(UserError, match="holds no list of classes"):
        vocabulary("folder", str(tmp_path / "classes.yaml"), None)
