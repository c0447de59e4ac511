"""Class names and prompts: files, lists, several names, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from coreg_ray.annotations.vocabulary import paper_classes, questions, vocabulary
from coreg_ray.errors import UserError


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
    assert len(paper_classes("gtsrb")) == 43
    assert paper_classes("cifar10") == []
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
    ],
)
def test_wrong_class_names_are_refused(classes: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        vocabulary("folder", classes, ["a {}"])


@pytest.mark.parametrize("prompt", ["a photo", "a {} and {}", "a {name}", "{} {0}"])
def test_prompts_need_their_placeholder_once(prompt: str) -> None:
    with pytest.raises(UserError, match=r"needs \{\} exactly once"):
        vocabulary("folder", ["a", "b"], ["a {}", prompt])


def test_a_file_that_holds_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text("cats: 3")
    with pytest.raises(UserError, match="holds no list of classes"):
        vocabulary("folder", str(tmp_path / "classes.yaml"), None)
