"""Class names and prompts: files, lists, several names, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coreg_ray.annotation.descriptions import are_descriptions
from coreg_ray.annotation.vocabulary import Vocabulary, prompts_that_count, questions, vocabulary
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


LOOKS = """
Automobile: [four wheels, "a {} on a road", two doors]
plane: two wings
"""


def described(tmp_path: Path, text: str, votes: Any = "each") -> Vocabulary:
    path = tmp_path / "looks.yaml"
    path.write_text(text)
    return vocabulary("folder", ["car|automobile", "plane"], ["a {}"], (), str(path), votes)


def test_each_description_is_a_voter_of_its_own(tmp_path: Path) -> None:
    words = described(tmp_path, LOOKS)
    assert words.templates == ("a {}",)
    assert [prompt.split(" (")[0] for prompt in words.prompts[1:]] == [f"description {n}" for n in (1, 2, 3)]
    wings = ("two wings",)  # the only one of its class, so it is said again
    assert words.descriptions == (
        (("four wheels",), wings), (("a car on a road",), wings), (("two doors",), wings),
    )  # fmt: skip
    assert are_descriptions(words.prompts, "each") == list(words.prompts[1:])
    assert are_descriptions(words.prompts, "mean") == []
    assert questions(words, None).descriptions == ()


def test_descriptions_may_be_one_voter(tmp_path: Path) -> None:
    words = described(tmp_path, "descriptions:" + LOOKS.replace("\n", "\n  "), "mean")
    (called,) = words.prompts[1:]
    assert called.startswith("descriptions (")
    assert words.descriptions == ((("four wheels", "a car on a road", "two doors"), ("two wings",)),)


def test_named_prompts_and_wanted_descriptions_count() -> None:
    asked = ("a {}", "the {}", "description 1 (0a)", "description 2 (1b)")
    for prompts, descriptions, expected in (
        (None, None, asked),
        (["the {}"], None, ("the {}",)),
        (["the {}"], "looks.yaml", ("the {}", *asked[2:])),
        (None, "looks.yaml", asked),
        (["my {}"], None, ("my {}",)),  # which was not asked, as whoever asks sees
    ):
        assert prompts_that_count(asked, prompts, descriptions, "each") == expected
    with pytest.raises(UserError, match=r"not asked with source\.description_votes=mean; annotate with them first"):
        prompts_that_count(asked, None, "looks.yaml", "mean")


def test_other_descriptions_are_other_prompts(tmp_path: Path) -> None:
    first = described(tmp_path, LOOKS)
    assert described(tmp_path, "plane: [two  wings]" + LOOKS.replace("plane: two wings", "")) == first
    other = described(tmp_path, LOOKS.replace("two doors", "four doors"))
    assert other.prompts[:3] == first.prompts[:3]
    assert other.prompts[3] != first.prompts[3]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("car: [wheels]\nplane: [wings]\nboat: [a sail]", r"describes 'boat', no class of car, plane; write"),
        ("car: [wheels]\nplane: []", r"'plane' has no description \(\[\]\)"),
        ("car: [wheels]\nplane:", r"'plane' has no description \(None\)"),
        ("car: [wheels]", "no description of 'plane'; write one or more for every class"),
        ("car: [wheels]\nautomobile: [doors]\nplane: wings", "describes class 'car' twice, the second .*'automobile'"),
        ("car: [wheels, 4]\nplane: wings", "'car' is described by 4, which is no text; write it in quotes"),
        ("car: [wheels, ' ']\nplane: wings", "'car' is described by ' '"),
        ("- car\n- plane", "holds no descriptions; give a YAML mapping"),
        ("", "holds no descriptions"),
        ("car: [wheels\nplane: wings", r"looks.yaml is not valid YAML: .*line"),
        ("car: wheels\ncar: doors\nplane: wings", "'car' occurs twice, in lines 1 and 2"),
        ("3: wheels\ncar: doors\nplane: wings", "describes 3, no class of"),
    ],
)
def test_wrong_descriptions_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        described(tmp_path, text)


def test_descriptions_that_are_nowhere_are_refused() -> None:
    with pytest.raises(UserError, match=r"source\.descriptions=nowhere/looks\.yaml cannot be read .*; give a"):
        vocabulary("folder", ["a", "b"], None, (), "nowhere/looks.yaml")


def test_a_file_that_holds_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text("cats: 3")
    with pytest.raises(UserError, match="holds no list of classes"):
        vocabulary("folder", str(tmp_path / "classes.yaml"), None)
