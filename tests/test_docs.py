"""What README and docs tell people to type is what the programs take.

Every command in a fenced block is read by the real command line, up to where its work would start; YAML is loaded by
what reads such files; Python is compiled and its names exist; settings named in a sentence exist and take the value
beside them. A block that needs what a test has not says so above it: `<!-- needs: a GPU, a cloud -->`; YAML that is no
configuration says what it is: `<!-- test: space -->`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from doc_blocks import PAGES, ROOT, Block, blocks_of, inline_code, of_ours, shell_commands
from make_reference import flags
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from coreg_ray import cli
from coreg_ray.annotation.descriptions import read_descriptions
from coreg_ray.commands.base import Command, load
from coreg_ray.config import Config
from coreg_ray.config.texts import fields_of, flattened
from coreg_ray.errors import UserError
from coreg_ray.run.folder import RunFolder
from coreg_ray.search.comparison import rows_of_variants
from coreg_ray.search.space import read_space

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
LANGUAGES = {"bash", "yaml", "python", "text", ""}
NEEDS = {"a download", "a GPU", "a cloud", "a chat server", "Grafana", "a running Ray", "a running server"}
PROGRAMS = {
    "pip",
    "python3",
    ".",
    "pytest",
    "ray",
    "curl",
    "mkdocs",
    "mkdir",
    "cp",
    "apt",
    "unset",
    "grafana-server",
    "hf",
    "tensorboard",
    "coreg-ray",
    "python",
}
PLACEHOLDER = re.compile(
    r"(RUN|DIR|FILE|IMAGE|STUDY|OTHER)(/.*)?|ORG/NAME|runs/[\w/.-]+|/data/[\w/.-]+|s3://BUCKET/.*|gs://\.\.\."
    r"|(birds|run|space|rows|image|labels|digits|benchmark|people|votes|digits|photos)(\.\w+|/[\w/.-]*)?"
)  # what an example may call its files
RUNS = ("RUN", "runs/digits", "runs/a", "runs/b", "runs/c", "runs/search", "runs/tutorial")


class Stop(Exception):
    """Raised where a command has read its words and would begin to work."""


def stop(*words: Any, **named: Any) -> Any:
    raise Stop


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what examples name; commands read there, and write nothing."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "birds.txt").write_text("sparrow\ngull\n")
    (folder / "run.yaml").write_text("source: {kind: folder, path: birds, classes: birds.txt}\n")
    (folder / "space.yaml").write_text("method.lambda_u: {uniform: [0, 2]}\n")
    (folder / "rows.yaml").write_text("coreg: {}\nelr: {method.kind: elr}\n")
    for name in RUNS:
        run = RunFolder.at(folder / name)
        run.write_config(Config(output=name))
        run.write("best.yaml", run.read("config.yaml"))
        run.model.write("model.json", "{}")
    return folder


@pytest.fixture
def reads(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], None]:
    """A command's own `main`, up to where its work would start."""
    monkeypatch.chdir(desk)
    for where in (  # what comes after all words have been read and checked
        "coreg_ray.cluster.address.refuse_silent",
        "coreg_ray.deploy.model.read_card",
        "coreg_ray.deploy.model.Model.load",
        "coreg_ray.report.overview.overview",
        "coreg_ray.review.items.read_table_of",
        "coreg_ray.run.folder.RunFolder.read_candidate_manifest",
        "coreg_ray.studies.suite.measure",
    ):
        monkeypatch.setattr(where, stop)

    def read(name: str, words: list[str]) -> None:
        with pytest.raises(Stop):
            import_module(f"coreg_ray.commands.{name}").main(words)

    return read


def shell_blocks() -> list[Block]:
    return [block for block in BLOCKS if block.language == "bash"]


@pytest.mark.parametrize("block", shell_blocks(), ids=lambda block: block.place)
def test_commands_are_what_the_programs_take(block: Block, reads: Callable[[str, list[str]], None]) -> None:
    for words in shell_commands(block.text):
        assert words[0] in PROGRAMS or (ROOT / words[0]).exists(), f"{words[0]} is no program that the pages may name"
        ours = of_ours(words)
        if ours and ours[0] in cli.COMMANDS:
            try:
                reads(ours[0], [re.sub(r"^(s3|gs)://", "elsewhere/", word) for word in ours[1] if word != "..."])
            except UserError as error:
                pytest.fail(f"{block.place}: {' '.join(words)}\n{error}")
        elif ours:
            assert ours[0] in ("--help", "--version"), f"{ours[0]} is no command"
        elif words[:2] == ["python", "-m"]:
            takes_flags(words[2], words[3:])
        elif words[0] == "python":
            assert (ROOT / words[1]).exists(), f"{words[1]} does not exist"


def takes_flags(module: str, words: list[str]) -> None:
    """A program of the package: it exists, and names every flag in its source."""
    found = find_spec(module)
    assert found is not None, f"there is no {module}"
    assert found.origin is not None
    if module.startswith("coreg_ray"):
        folder = Path(found.origin)
        source = "".join(
            path.read_text() for path in (folder.parent.glob("*.py") if folder.stem == "__init__" else [folder])
        )
        missing = [word for word in words if word.startswith("--") and f'"{word}"' not in source]
        assert not missing, f"{module} takes no {', '.join(missing)}"


@pytest.mark.parametrize("block", shell_blocks(), ids=lambda block: block.place)
def test_files_in_commands_exist_or_stand_for_ones_own(block: Block) -> None:
    for words in shell_commands(block.text):
        ours = of_ours(words)
        for word in ours[1] if ours else []:
            path = word.split("=", 1)[-1]
            is_path = re.search(r"^[\w.~-]*/|\.(ya?ml|csv|png|json|txt|jsonl|parquet)$|^[A-Z]+(/|$)", path)
            if is_path and "://" not in path and not path.startswith("{"):
                assert PLACEHOLDER.fullmatch(path) or (ROOT / path).exists(), f"{block.place}: {path}"


def needed(block: Block) -> set[str]:
    """What a block's commands show that they need."""
    found: set[str] = set()
    for words in shell_commands(block.text):
        ours = of_ours(words)
        given = dict(pairwise(words))
        if any(word.startswith(("s3://", "gs://")) for word in words) or words[:2] in (["ray", "up"], ["ray", "down"]):
            found.add("a cloud")
        if given.get("--cluster.use_gpu") == "true" or given.get("--annotator.num_gpus", "0") != "0":
            found.add("a GPU")
        if given.get("--annotator.kind") == "chat":
            found.add("a chat server")
        if words[:2] in (["ray", "job"],):
            found.add("a running Ray")
        if words[0] == "curl":
            found.add("a running server")
        downloads = {"huggingface", "torchvision"} & {given.get("--source.kind"), given.get("--test.kind")}
        if ours and (downloads or any(map(is_downloading, given.get("--preset", "").split(",")))):
            found.add("a download")
    return found


@cache
def is_downloading(preset: str) -> bool:
    """Whether a preset names weights or images that come from elsewhere."""
    path = ROOT / "coreg_ray/presets" / f"{preset}.yaml"
    tree = flattened(yaml.safe_load(path.read_text())) if path.exists() else {}
    return (
        tree.get("annotator.model", "embedded") != "embedded"
        or tree.get("student.pretrained") == "hub"
        or tree.get("source.kind") in ("torchvision", "huggingface")
    )


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_blocks_say_what_they_need_and_what_they_are(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block.place}: a block is of one of {LANGUAGES}"
    assert set(block.needs) <= NEEDS, f"{block.place}: {block.needs}; use some of {NEEDS}"
    if block.language == "bash":
        missing = needed(block) - set(block.needs)
        assert not missing, f"{block.place} needs <!-- needs: {', '.join(sorted(missing))} --> above it"
    elif block.language == "":
        assert not re.search(r"^(coreg-ray|python) ", block.text, re.M), f"{block.place}: commands are a block `bash`"


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "yaml"], ids=lambda block: block.place
)
def test_yaml_is_loaded_by_what_reads_it(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "block.yaml"
    path.write_text(block.text)
    tree = yaml.safe_load(block.text)
    if block.kind == "space":
        assert read_space(str(path), Config()).keys
    elif block.kind == "variants":
        assert len(rows_of_variants(tree, "the page", frozen=False)) == len(tree)
    elif block.kind == "descriptions":
        assert read_descriptions(str(path), tuple((name,) for name in tree))
    else:
        assert block.kind == ""
        config = load(["--config", str(path)], Command)
        assert set(tree) <= set(type(config).model_fields)


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "python"], ids=lambda block: block.place
)
def test_python_compiles_and_its_names_exist(block: Block) -> None:
    tree = ast.parse(block.text)
    compile(tree, block.place, "exec")
    models = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("coreg_ray"):
            module = import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{block.place}: {node.module} has no {alias.name}"
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("coreg_ray.load("):
            models |= {ast.unparse(target) for target in node.targets}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "coreg_ray":
                assert hasattr(import_module("coreg_ray"), node.attr), f"{block.place}: coreg_ray.{node.attr}"
            elif node.value.id in models:
                model = import_module("coreg_ray.deploy.model").Model
                assert node.attr in {*dir(model), *model.__annotations__}, f"{block.place}: a model has no {node.attr}"


# Inside of sentences.


@cache
def settings() -> dict[str, FieldInfo]:
    """Every setting of the configuration, by dotted name."""
    known: dict[str, FieldInfo] = {}
    for name, _ in fields_of(Config):
        model: Any = Config
        *sections, last = name.split(".")
        for part in sections:
            model = model.model_fields[part].annotation
        known[name] = model.model_fields[last]
    return known


@cache
def all_flags() -> frozenset[str]:
    """Every flag of every command, as it is written."""
    modules = [import_module(f"coreg_ray.commands.{name}") for name in cli.COMMANDS]
    own = {row[0].strip("`") for module in modules for row in flags(module)}
    return frozenset(own | {f"--{name}" for name in [*settings(), "config", "preset", "help", "version"]})


OTHER_FLAGS = {  # of other programs, and examples of what is none
    "--draw", "--logdir", "--submission-id", "--address", "--regime", "--noise", "--", "--epochs", "--flag=VALUE",
    "--method", "--section.key", "--flag", "--epochs,", "--sparse",
}  # fmt: skip
SECTIONS = tuple(
    name for name in Config.model_fields if any(key.startswith(f"{name}.") for key, _ in fields_of(Config))
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_in_sentences_exist_and_take_their_values(page: Path) -> None:
    wrong = []
    for place, code in inline_code(page):
        words = code.split()
        if words[:2] == ["python", "-m"] or words[0] in ("ray", "pytest", "pip", "<!--"):
            continue  # other programs' flags
        at = 0
        while at < len(words):
            word, at = words[at], at + 1
            value = words[at] if at < len(words) and not words[at].startswith("-") else None
            if word.startswith("--"):
                name = word.removeprefix("--")
                if word not in all_flags() | OTHER_FLAGS:
                    wrong.append(f"{place}: {word} is a flag of no command")
            elif at == 1 and re.fullmatch(rf"({'|'.join(SECTIONS)})\.[a-z_.]+", word) and not is_file(word):
                name = word
                if name not in settings() and not any(key.startswith(f"{name}.") for key in settings()):
                    wrong.append(f"{place}: {name} is no setting")
            else:
                continue
            if name in settings() and value and len(words) <= at + 1 and not is_placeholder(value):
                wrong += [f"{place}: {name} {value}: {problem}" for problem in refused(settings()[name], value)]
    assert not wrong, "\n".join(wrong)


def is_file(word: str) -> bool:
    return bool(re.search(r"\.(yaml|json|csv|html|py|jsonl|md|npy)$", word))


def is_placeholder(value: str) -> bool:
    return bool(re.match(r"[A-Z_]{1,}\b|['\[{(|,.;]|\d+$", value)) and not value.isdigit()


def refused(field: FieldInfo, value: str) -> list[str]:
    """Why a setting does not take a value as a command line gives it."""
    read = yaml.safe_load(value.rstrip(",;"))
    limited: Any = Annotated[field.annotation, field]
    try:
        TypeAdapter(limited).validate_python(read)
    except ValidationError as error:
        return [problem["msg"] for problem in error.errors()]
    return []


# Links, and what is said of messages.


def test_pages_that_the_code_names_exist() -> None:
    """`docs/method.md` in a comment, a message or a page outside of docs/."""
    folders = ("coreg_ray", "jobs", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    files += [path for path in ROOT.iterdir() if path.suffix in (".md", ".yaml", ".toml")]
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in re.findall(r"docs/[\w/-]+\.(?:md|py|png)", path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists() and path.name not in ("CHANGELOG.md", "make_reference.py")
    }
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|mailto:", target):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """What headings are called in addresses, by the rule of forges."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def messages() -> str:
    """All text that the package can print, constants in it written out."""
    constants: dict[str, str] = {}
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "coreg_ray").rglob("*.py")]
    for tree in trees:
        for one in tree.body:
            if isinstance(one, ast.Assign):
                names = [ast.unparse(target) for target in one.targets]
                values = [one.value]
                if isinstance(one.targets[0], ast.Tuple) and isinstance(one.value, ast.Tuple):
                    names, values = [ast.unparse(name) for name in one.targets[0].elts], list(one.value.elts)
                for name, value in zip(names, values, strict=False):
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        constants[name] = value.value
    texts = []
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(_written_out(part, constants) for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def _written_out(part: ast.expr, constants: dict[str, str]) -> str:
    """A part of a formatted text; what is known when it is printed is a gap."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    return constants.get(ast.unparse(part.value), "\0") if isinstance(part, ast.FormattedValue) else "\0"


OF_PYDANTIC = {"input should be"}


def test_messages_on_the_page_of_failures_are_printed_by_the_code() -> None:
    text = (ROOT / "docs/failures.md").read_text(encoding="utf-8").split("## Messages, by situation")[1]
    told = [
        code.replace("\\|", "|")
        for line in text.splitlines()
        if line.startswith("| `")
        for code in re.findall(r"`([^`]+)`", line.split(" | ")[0])
    ]
    assert len(told) > 50
    unknown = [code for code in told if code not in messages() and code not in OF_PYDANTIC]
    assert not unknown


def test_the_checks_themselves_see_what_they_look_for(reads: Callable[[str, list[str]], None]) -> None:
    """A check that cannot fail protects nothing."""
    wrong = [["--method.epoch", "3"], ["--method.epochs", "0"], ["--preset", "photo"], ["--source.kind", "folder"]]
    for words in wrong:
        with pytest.raises(UserError):
            reads("pipeline", words)
    for name in cli.COMMANDS:
        with pytest.raises((UserError, SystemExit)):
            reads(name, ["--no.such", "1"])
    assert refused(settings()["method.kind"], "coregg")
    assert not refused(settings()["method.kind"], "elr")
    assert list(shell_commands("A=1 coreg-ray train \\\n  --x 'y z' && ls  # no")) == [
        ["coreg-ray", "train", "--x", "y z"],
        ["ls"],
    ]
    assert of_ours(["ray", "job", "submit", "--", "python", "jobs/train.py", "--x"]) == ("train", ["--x"])
    assert of_ours(["ls"]) is None
    assert is_downloading("photos")
    assert not is_downloading("photos-smoke")


def test_pictures_are_small_and_shown() -> None:
    pictures = list((ROOT / "docs").rglob("*.png"))
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for path in pictures:
        assert path.stat().st_size < 150_000, path.name
        assert path.relative_to(ROOT / "docs").as_posix() in shown, f"no page shows {path.name}"
    assert len(pictures) >= 7
    assert sum(path.stat().st_size for path in pictures) < 1_000_000
