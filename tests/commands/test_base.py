"""From words to a checked configuration: layers, spellings, and messages that a person can act on."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib import resources
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from coreg_ray.commands.base import Command, load, run
from coreg_ray.config import Config
from coreg_ray.config.texts import resolved_yaml
from coreg_ray.errors import UserError


class Train(Command):
    """A job with settings of its own."""

    annotations: str = Field(description="the annotations/ folder of an earlier run")
    top_k: int = Field(5, ge=1, description="classes kept")


def parsed(*words: str) -> Command:
    return load(list(words), Command)


def refusal(*words: str, command: type[Command] = Command) -> str:
    with pytest.raises(UserError) as error:
        load(list(words), command)
    return str(error.value)


def written(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_without_words_the_embedded_default_runs() -> None:
    config = parsed()
    assert (config.source.kind, config.annotator.model, config.preset) == ("digits", "embedded", "digits")
    assert config == parsed("--preset", "digits")


def test_another_source_starts_from_the_papers_constants() -> None:
    config = parsed("--source.kind", "folder", "--source.path", "x", "--source.classes", "names.txt")
    assert (config.preset, config.method, config.student) == (None, Config().method, Config().student)


def test_overrides_lie_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = written(tmp_path, "preset: smoke\nseed: 3\nmethod: {epochs: 90, ramp_epochs: 1}\n")
    config, smoke = parsed("--config", file, "--method.epochs", "110"), parsed("--preset", "smoke")
    assert (config.method.epochs, config.method.ramp_epochs, config.seed) == (110, 1, 3)
    assert (config.method.queue_size, config.student.width) == (smoke.method.queue_size, smoke.student.width)
    assert parsed("--config", file, "--preset", "digits").student.width == parsed().student.width != smoke.student.width


def test_dotted_and_nested_keys_mean_the_same(tmp_path: Path) -> None:
    nested = parsed("--config", written(tmp_path, "method:\n  epochs: 90\n  order: sequential\n"))
    dotted = parsed("--config", written(tmp_path, "method.epochs: 90\nmethod: {order: sequential}\n"))
    assert nested.method == dotted.method
    assert (nested.method.epochs, nested.method.order) == (90, "sequential")


def test_an_empty_file_and_an_empty_section_change_nothing(tmp_path: Path) -> None:
    for text in ("", "method:\n", "method: {}\n"):
        assert parsed("--config", written(tmp_path, text)).settings() == parsed().settings()


def test_null_empties_a_setting_of_the_preset(tmp_path: Path) -> None:
    assert parsed("--test.kind", "null").test.kind is None
    assert parsed("--config", written(tmp_path, "test.kind: null\n")).test.kind is None


def test_the_resolved_file_gives_the_same_run_back(tmp_path: Path) -> None:
    config = parsed(
        "--method.epochs", "400", "--source.prompts", "a {}, drawn", "--cluster.resources_per_worker", "CPU=2"
    )
    again = parsed("--config", written(tmp_path, resolved_yaml(config)))
    assert again.settings() == config.settings()
    assert again.fingerprint() == config.fingerprint()


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--source.classes", "names, v2.txt"], "names, v2.txt"),
        (["--source.classes", "[cat, dog]"], ["cat", "dog"]),
        (["--source.classes", '["cat", "5"]'], ["cat", "5"]),
        (["--source.classes", "cat", "--source.classes", "big dog, brown"], ["cat", "big dog, brown"]),
        (["--source.classes", "0", "--source.classes", "1"], ["0", "1"]),
        (["--source.classes", "null"], None),
    ],
)
def test_lists_on_the_command_line(words: list[str], meant: Any) -> None:
    assert parsed(*words).source.classes == meant


def test_a_prompt_keeps_its_commas_quotes_and_braces() -> None:
    prompts = ['a "{}", a type of pet.', "{} in the wild"]
    assert parsed("--source.prompts", prompts[0], "--source.prompts", prompts[1]).source.prompts == prompts
    assert parsed("--source.prompts", prompts[0]).source.prompts == [prompts[0]]


def test_dictionaries_booleans_and_further_annotators(tmp_path: Path) -> None:
    assert parsed("--cluster.resources_per_worker", '{"CPU": 2}').cluster.resources_per_worker == {"CPU": 2}
    file = tmp_path / "gpu.yaml"
    file.write_text("cluster: {resources_per_worker: {CPU: 4, GPU: 1}, num_workers: 2}")
    over = parsed("--config", str(file), "--cluster.resources_per_worker", '{"CPU": 2}').cluster
    assert (over.resources_per_worker, over.num_workers) == ({"CPU": 2}, 2)  # the whole mapping is one setting
    assert parsed("--cluster.resources_per_worker", "CPU=2,disk=1").cluster.resources_per_worker == {
        "CPU": 2,
        "disk": 1,
    }
    assert parsed("--student.flip=false").student.flip is False
    further = parsed("--further_annotators", '[{"model": "embedded", "min_actors": 1}]').further_annotators
    assert [annotator.model for annotator in further] == ["embedded"]


def test_values_that_begin_with_a_dash() -> None:
    assert parsed("--output=-x").output == "-x"
    assert "method.batch_size=-4" in refusal("--method.batch_size", "-4")


def test_the_environment_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEED", "seed", "METHOD__EPOCHS", "method.epochs", "OUTPUT"):
        monkeypatch.setenv(name, "7")
    assert parsed().settings() == parsed("--preset", "digits").settings()
    assert parsed().seed == 0


@pytest.mark.parametrize("name", ["output", "method.epochs", "student.flip"])
def test_an_option_without_value_says_so(name: str) -> None:
    said = refusal(f"--{name}")
    assert f"--{name} has no value" in said
    assert "unknown" not in said


@pytest.mark.parametrize(
    ("word", "close", "valid"),
    [
        ("method.epochss", "did you mean method.epochs?", "method.clean_threshold"),
        ("methd.epochs", "did you mean method.epochs?", "student.*"),
        ("out", "did you mean output?", "seed, output, start_from"),
        ("epochs", "", "method.*"),
    ],
)
def test_an_unknown_setting_lists_the_valid_ones(word: str, close: str, valid: str, tmp_path: Path) -> None:
    for said in (
        refusal(f"--{word}", "3"),
        refusal(f"--{word}=3"),
        refusal("--config", written(tmp_path, f"{word}: 3")),
    ):
        assert said.startswith(f"unknown setting {word};")
        assert close in said
        assert valid in said


def test_a_section_is_no_setting(tmp_path: Path) -> None:
    for said in (refusal("--method"), refusal("--method", "3"), refusal("--config", written(tmp_path, "method: 3"))):
        assert said.startswith("method is a section of settings; give one of them: method.epochs")


def test_a_word_too_many() -> None:
    assert "'dog' belongs to no setting" in refusal("--output", "x", "dog")
    assert "'-v' belongs to no setting" in refusal("-v")


def test_abbreviations_are_unknown() -> None:
    assert refusal("--see", "3").startswith("unknown setting see; did you mean seed?")


def test_a_value_out_of_range_names_value_and_limit() -> None:
    assert refusal("--method.epochs", "0") == "method.epochs=0: input should be greater than or equal to 1"
    assert "method.epochs=many: input should be a valid integer" in refusal("--method.epochs", "many")
    assert "'concurrent' or 'sequential'" in refusal("--method.order", "both")


def test_all_mistakes_are_named_at_once() -> None:
    assert len(refusal("--method.epochs", "0", "--seed", "-1").splitlines()) == 2


def test_contradictions_come_in_the_validators_own_words() -> None:
    assert refusal("--method.warmup_epochs", "50", "--method.epochs", "40") == (
        "method: warmup_epochs=50 exceeds epochs=40; lower warmup_epochs or raise epochs"
    )
    assert (
        refusal("--source.kind", "folder") == "source.kind=folder needs source.path, the folder or file of the images"
    )


def test_an_unknown_key_of_a_further_annotator() -> None:
    said = refusal("--further_annotators", '[{"modl": "embedded"}]')
    assert said.startswith("unknown setting further_annotators.0.modl; valid ones: kind, model, pretrained")


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refusal("--config", str(tmp_path / "none.yaml"))
    assert "is not valid YAML" in refusal("--config", written(tmp_path, "method: ["))
    assert "holds a list; it must hold keys" in refusal("--config", written(tmp_path, "- 1"))
    assert "is not valid YAML" in refusal("--config", written(tmp_path, "!!python/object/apply:os.getcwd []"))
    assert "preset=nope is unknown; the presets are digits, search, smoke" in refusal("--preset", "nope")


@pytest.mark.parametrize("name", ["digits", "smoke"])
def test_presets_are_whole(name: str) -> None:
    text = resources.files("coreg_ray").joinpath(f"presets/{name}.yaml").read_text(encoding="utf-8")
    assert Config.model_validate(yaml.safe_load(text)).output == f"runs/{name}"


def test_a_jobs_own_settings() -> None:
    config = load(["--annotations", "x", "--method.epochs", "120"], Train)
    assert isinstance(config, Train)
    assert (config.annotations, config.top_k, config.method.epochs) == ("x", 5, 120)
    assert config.fingerprint() == parsed("--method.epochs", "120").fingerprint()
    assert "annotations" not in config.settings()
    assert refusal(command=Train) == (
        "annotations is missing; give --annotations VALUE, the annotations/ folder of an earlier run"
    )
    assert "unknown setting annotations;" in refusal("--annotations", "x")
    assert refusal("--annotations", "x", "--top_k", "0", command=Train).startswith("top_k=0: ")


def test_help_is_readable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["jobs/train.py"])
    with pytest.raises(SystemExit) as end:
        load(["--help"], Train, "Train anew.\n\n    python jobs/train.py --annotations X\n")
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0
    assert lines[0] == "usage: train.py [--config FILE] [--section.key VALUE ...]"
    assert "    python jobs/train.py --annotations X" in lines
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for part in ("--annotations", "--top_k", "--method.clean_threshold", "(default: 0.999)", "Co-Reg's schedule"):
        assert part in text
    assert "None" not in text


def test_mistakes_end_in_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["job.py", "--method.epochs", "0"])
    with pytest.raises(SystemExit) as end:
        run(lambda words: str(load(words, Command)))
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: method.epochs=0: input should be greater than or equal to 1\n"


def test_passwords_in_uris_are_neither_logged_nor_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])

    def main(arguments: list[str]) -> None:
        logging.getLogger("coreg_ray").warning("going on in %s", "s3://key:secret@bucket/run")
        raise UserError("--output s3://key:secret@bucket/run cannot be read")

    with pytest.raises(SystemExit):
        run(main)
    said = capsys.readouterr().err
    assert "going on in s3://bucket/run\n" in said
    assert "error: --output s3://bucket/run cannot be read" in said
    assert "secret" not in said


def test_an_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["job.py"])
    with pytest.raises(SystemExit) as end:
        run(interrupted)
    assert end.value.code == 130
    assert "the same command continues this run" in capsys.readouterr().err


def test_training_refuses_an_annotation_that_nobody_can_explain(tmp_path: Path) -> None:
    job = Path(__file__).parents[2] / "jobs/train.py"
    done = subprocess.run(
        [sys.executable, job, "--annotations", str(tmp_path / "annotations"), "--output", str(tmp_path / "x")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "has no config.yaml, so nobody knows what was annotated; give" in done.stderr
    assert not (tmp_path / "x").exists()


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(words: list[str]) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(sys, "argv", ["job.py"])
    with pytest.raises(RuntimeError, match="a defect"):
        run(broken)


def test_a_search_without_arguments_is_the_short_one_over_the_digits() -> None:
    found = spec_from_file_location("tune_job", Path(__file__).parents[2] / "jobs/tune.py")
    assert found is not None
    assert found.loader is not None
    job = module_from_spec(found)
    found.loader.exec_module(job)
    assert load(job.with_preset(job.with_value([])), job.TuneCommand).preset == "search"
    assert job.with_value(["--resume"]) == ["--resume=true"]
    assert job.with_value(["--resume", "--seed", "1"]) == ["--resume=true", "--seed", "1"]
    assert job.with_value(["--seed", "1", "--resume", "false"]) == ["--seed", "1", "--resume", "false"]
