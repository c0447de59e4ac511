"""From words to a checked configuration: layers, spellings, and messages that a person can act on."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from coreg_ray.commands import pipeline, tune
from coreg_ray.commands.base import Command, load, program, run
from coreg_ray.config import Config
from coreg_ray.config.fit_to_pool import fitted_to_pool
from coreg_ray.config.older import ADDED
from coreg_ray.config.texts import flattened, resolved_yaml
from coreg_ray.errors import UserError
from coreg_ray.images.paper_sets import PAPER_SETS
from coreg_ray.run.folder import RunFolder


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
    digits = parsed("--config", file, "--preset", "digits")
    assert digits.method.queue_size == parsed().method.queue_size != smoke.method.queue_size


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
    message = refusal(f"--{name}")
    assert f"--{name} has no value" in message
    assert "unknown" not in message


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
    for message in (
        refusal(f"--{word}", "3"),
        refusal(f"--{word}=3"),
        refusal("--config", written(tmp_path, f"{word}: 3")),
    ):
        assert message.startswith(f"unknown setting {word};")
        assert close in message
        assert valid in message


def test_a_section_is_no_setting(tmp_path: Path) -> None:
    file = written(tmp_path, "method: 3")
    for message in (refusal("--method"), refusal("--method", "3"), refusal("--config", file)):
        assert message.startswith("method is a section of settings; give one of them: method.kind")


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
    message = refusal("--further_annotators", '[{"modl": "embedded"}]')
    assert message.startswith("unknown setting further_annotators.0.modl; valid ones: kind, model, pretrained")


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refusal("--config", str(tmp_path / "none.yaml"))
    assert "is not valid YAML" in refusal("--config", written(tmp_path, "method: ["))
    assert "holds a list; it must hold keys" in refusal("--config", written(tmp_path, "- 1"))
    assert "is not valid YAML" in refusal("--config", written(tmp_path, "!!python/object/apply:os.getcwd []"))
    assert "preset=nope is unknown; the presets are cifar10, cifar100, " in refusal("--preset", "nope")


@pytest.mark.parametrize("name", ["digits", "photos-smoke", "photos-finetune-smoke", "smoke"])
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
    for part in (
        "--annotations",
        "--top_k",
        "--method.clean_threshold",
        "(default: 0.999)",
        "Which method, its schedule",
    ):
        assert part in text
    assert "None" not in text


def test_mistakes_end_in_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: list[str]) -> None:
        load(arguments, Command)

    with pytest.raises(SystemExit) as end:
        run(main, ["--method.epochs", "0"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: method.epochs=0: input should be greater than or equal to 1\n"


def test_passwords_in_uris_are_neither_logged_nor_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])

    def main(arguments: list[str]) -> None:
        logging.getLogger("coreg_ray").warning("going on in %s", "s3://key:secret@bucket/run")
        raise UserError("--output s3://key:secret@bucket/run cannot be read")

    with pytest.raises(SystemExit):
        run(main, [])
    shown = capsys.readouterr().err
    assert "going on in s3://bucket/run\n" in shown
    assert "error: --output s3://bucket/run cannot be read" in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    ("stopped", "shown"),
    [(None, "the same command continues this run"), (tune.STOPPED, "the same command with --resume goes on")],
)
def test_an_interruption_says_how_to_go_on(stopped: str | None, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run(interrupted, [], stopped)
    assert end.value.code == 130
    assert shown in capsys.readouterr().err


def test_training_refuses_an_annotation_that_nobody_can_explain(tmp_path: Path) -> None:
    job = Path(__file__).parents[2] / "jobs/train.py"
    done = subprocess.run(
        [sys.executable, job, "--annotations", str(tmp_path / "annotations"), "--output", str(tmp_path / "x")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "has no config.yaml, so nobody knows what was annotated; give" in done.stderr
    assert not (tmp_path / "x").exists()


def test_other_errors_keep_their_traceback() -> None:
    def broken(arguments: list[str]) -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run(broken, [])


def test_a_search_without_arguments_is_the_short_one_over_the_digits() -> None:
    assert load(tune.with_preset(tune.with_value([])), tune.TuneCommand).preset == "search"
    assert tune.with_value(["--resume"]) == ["--resume=true"]
    assert tune.with_value(["--resume", "--seed", "1"]) == ["--resume=true", "--seed", "1"]
    assert tune.with_value(["--seed", "1", "--resume", "false"]) == ["--seed", "1", "--resume", "false"]


@pytest.mark.parametrize(
    ("called", "shown"),
    [
        ("jobs/pipeline.py", "python jobs/predict.py"),
        ("/opt/coreg_ray/jobs/train.py", "python /opt/coreg_ray/jobs/predict.py"),
        ("/usr/local/bin/coreg-ray", "coreg-ray predict"),
        ("coreg-ray", "coreg-ray predict"),
    ],
)
def test_what_to_do_next_is_told_in_the_form_of_the_call(
    called: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [called, "predict"])
    assert program("predict") == shown
    figures = {"time/annotate_s": 60.0, "time/train_s": 120.0}
    assert f"\nNext: {shown} --model runs/x/model " in pipeline.summary(figures, "runs/x")


# A second call on the same --output.


def begun(folder: Path, *words: str) -> Config:
    """A run folder, begun with these words."""
    config = parsed("--output", str(folder), *words)
    RunFolder.at(folder).write_config(config)
    return config


def continued(folder: Path, *words: str) -> Command:
    return load(["--output", str(folder), *words], Command, continues=True)


BEGUN_OTHERWISE = {  # what today's defaults, or those of the preset, are not
    "seed": 4,
    "start_from": "runs/old",
    "source.prompts": ["a {}", "the {}"],
    "source.background": ["a blank page"],
    "test.kind": None,
    "annotator.pretrained": "laion2b",
    "further_annotators": [{"kind": "clip", "model": "embedded"}],
    "method.temperature": 0.7,
    "method.epochs": 33,
    "method.weak_views": 2,
    "student.flip": True,
}


def with_setting(config: Config, name: str, value: Any) -> Config:
    tree = config.settings()
    branch = tree
    *sections, last = name.split(".")
    for section in sections:
        branch = branch[section]
    branch[last] = value
    return Config.model_validate(tree)


@pytest.mark.parametrize("name", BEGUN_OTHERWISE)
def test_a_second_call_goes_on_with_what_the_run_was_begun_with(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = with_setting(begun(tmp_path), name, BEGUN_OTHERWISE[name])
    RunFolder.at(tmp_path).write_config(before)
    assert parsed("--output", str(tmp_path)).fingerprint() != before.fingerprint()  # what it would be today
    with caplog.at_level(logging.INFO):
        again = continued(tmp_path)
    assert again.settings() == before.settings()
    assert f"{name} {flattened(before.settings())[name]!r}, as {tmp_path} was begun with, not " in caplog.text
    RunFolder.at(tmp_path).claim(again)


def test_the_same_command_goes_on_with_what_was_fitted_to_its_pool(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--preset", "photos-smoke", "--output", str(tmp_path), "--method.queue_size", "null"]
    empty = load(words, Command, continues=True)
    run = RunFolder.at(tmp_path)
    run.claim(empty)
    fitted = fitted_to_pool(empty, 700)
    run.write_config(fitted)
    with caplog.at_level(logging.INFO):
        again = load(words, Command, continues=True)
    run.claim(again)
    begun_with = run.read_config()
    assert begun_with is not None
    assert begun_with.settings() == fitted.settings()
    assert fitted_to_pool(again, 700_000, begun_with).decisive() == fitted.decisive()
    assert "begun with" not in caplog.text  # nothing that was given is overruled
    rate = load([*words, "--method.learning_rate", "0.3"], Command, continues=True)
    with pytest.raises(UserError, match=r"method\.learning_rate 0\.02 -> 0\.3"):
        run.claim(rate)


def test_a_run_over_another_source_goes_on_without_its_source(tmp_path: Path) -> None:
    words = ["--source.kind", "folder", "--source.path", "pool", "--source.classes", "[cat, dog]"]
    before = begun(tmp_path, *words, "--method.epochs", "80")
    assert continued(tmp_path).settings() == before.settings()
    assert continued(tmp_path, *words).settings() == before.settings()


def test_a_run_that_a_changed_preset_began_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = begun(tmp_path)
    changed = {"source": {"kind": "digits"}, "test": {"kind": "digits"}, "method": {"epochs": 7, "warmup_epochs": 1}}
    monkeypatch.setattr("coreg_ray.commands.configured.preset_settings", lambda *_: changed)
    assert parsed().method.epochs == 7
    assert continued(tmp_path).settings() == before.settings()


def forget(folder: Path, name: str) -> None:
    """Take a setting out of a run's `config.yaml`, as if its version had not known it."""
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    branch = tree
    *sections, last = name.split(".")
    for section in sections:
        branch = branch[section]
    del branch[last]
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("added", ADDED)
def test_a_run_of_a_version_without_a_setting_goes_on_as_that_version_did(added: str, tmp_path: Path) -> None:
    begun(tmp_path)
    forget(tmp_path, added)
    assert flattened(continued(tmp_path).settings())[added] == ADDED[added]


def test_what_is_given_is_not_taken_from_the_run_and_refused(tmp_path: Path) -> None:
    begun(tmp_path, "--method.temperature", "0.7", "--seed", "4")
    file = written(tmp_path.parent, "method: {temperature: 0.5}\n")
    for words in (["--method.temperature", "0.5"], ["--config", file]):  # today's default, but given
        again = continued(tmp_path, *words)
        assert (again.method.temperature, again.seed) == (0.5, 4)
        with pytest.raises(UserError, match=r"run with other settings \(method\.temperature 0\.7 -> 0\.5\); choose"):
            RunFolder.at(tmp_path).claim(again)
    same = continued(tmp_path, "--method.temperature", "0.7")
    RunFolder.at(tmp_path).claim(same)


def test_a_preset_that_is_named_is_given(tmp_path: Path) -> None:
    begun(tmp_path)
    again = continued(tmp_path, "--preset", "smoke")
    assert again.method == parsed("--preset", "smoke").method
    with pytest.raises(UserError, match="run with other settings"):
        RunFolder.at(tmp_path).claim(again)


def test_what_decides_nothing_is_todays(tmp_path: Path) -> None:
    begun(tmp_path, "--report.pictures", "3", "--annotator.batch_size", "5", "--cluster.resources_per_worker", "CPU=2")
    again, today = continued(tmp_path), parsed()
    assert (again.report, again.annotator, again.cluster) == (today.report, today.annotator, today.cluster)


def test_a_command_that_begins_nothing_takes_nothing_from_a_folder(tmp_path: Path) -> None:
    begun(tmp_path, "--seed", "4")
    assert parsed("--output", str(tmp_path)).seed == 0
    assert continued(tmp_path / "new").seed == 0


class ReachedError(Exception):
    """The work that a command would begin."""


@pytest.mark.parametrize(
    ("name", "work", "words"),
    [
        ("pipeline", "coreg_ray.cluster.pipeline.run_pipeline", []),
        ("train", "coreg_ray.cluster.pipeline.run_pipeline", ["--annotations", "x/annotations"]),
        ("tune", "coreg_ray.cluster.tune.search", []),
    ],
)
def test_commands_that_go_on_with_a_run_take_its_settings(
    name: str, work: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "run", tmp_path / "x"):  # older ones, which lie side by side
        begun(folder, "--preset", "search")
        forget(folder, "method.weak_views")
    monkeypatch.chdir(tmp_path)
    configs: list[Config] = []

    def reached(*arguments: Any, **others: Any) -> None:
        configs.append(arguments[-1])
        raise ReachedError

    monkeypatch.setattr(work, reached)
    main: Callable[[list[str]], None] = import_module(f"coreg_ray.commands.{name}").main
    with pytest.raises(ReachedError):
        main(["--output", str(tmp_path / "run"), *words])
    assert [config.method.weak_views for config in configs] == [2]
    assert Config().method.weak_views == 1


def test_presets_lie_over_one_another(tmp_path: Path) -> None:
    alone, over = parsed("--preset", "method-dividemix"), parsed("--preset", "smoke,method-dividemix")
    assert (alone.method.kind, alone.method.lambda_u, alone.method.epochs) == ("dividemix", 25, parsed().method.epochs)
    assert over.method.kind == "dividemix"
    assert over.method.epochs == parsed("--preset", "smoke").method.epochs
    assert parsed("--preset", "smoke,method-dividemix", "--method.lambda_u", "3").method.lambda_u == 3


PAPER = ("cifar10", "cifar100", "svhn", "fashion_mnist", "eurosat", "fer2013", "gtsrb", "cifar100-synthetic")


@pytest.mark.parametrize("name", [*PAPER, "paper-smoke"])
def test_the_papers_experiments_are_presets_with_its_constants(name: str) -> None:
    config, papers = parsed("--preset", name), parsed("--preset", "paper").method
    scheduled = {
        "epochs",
        "warmup_epochs",
        *(("contrast_delay", "batch_size", "warmup_batch_size") * (name not in PAPER)),
    }
    assert config.method.model_dump(exclude=scheduled) == papers.model_dump(exclude=scheduled)
    if name in PAPER:
        assert config.source.name == config.test.name == name.split("-")[0]
        assert config.source.name in PAPER_SETS
        assert config.method.epochs == (800 if name.split("-")[0] in ("cifar10", "cifar100", "svhn") else 100)
        assert config.method.warmup_epochs == {"cifar100": 100, "cifar100-synthetic": 200}.get(name, 50)
        assert config.annotator.model == ("embedded" if config.candidates.mode == "synthetic" else "ViT-B-32")


def test_every_experiment_of_the_paper_has_a_preset() -> None:
    assert {name.split("-")[0] for name in PAPER} == set(PAPER_SETS)
