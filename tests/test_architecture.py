"""The rules of the house, checked on the source itself. To change a rule, change it here together with the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "coreg_ray"
LIBRARY = sorted(PACKAGE.rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))
PROGRAM = PACKAGE / "embedded/make_tiny_clip.py"  # trains the tiny CLIP, once; neither imported nor run by the library

# The method, from the ground up: each file imports only what stands before it, what is pure, and the foundations.
METHOD = (
    *("mesh", "rows", "networks", "optimizer", "state", "plan", "opinions", "steps", "evaluate", "coreg"),
    *("checkpoint", "history", "training"),
)
FOUNDATIONS = ("errors", "uris", "config", "storage")
PURE = (
    *("candidates", "criteria", "draws", "losses", "prototypes", "purify"),
    *("views.augment", "views.geometry", "views.operations"),
)
RESULTS = ("artifact", "model", "report.page")


def path_of(name: str) -> Path:
    """annotators.clip -> coreg_ray/annotators/clip.py; a package's file is its __init__.py."""
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def name_of(path: Path) -> str:
    """coreg_ray/annotators/clip.py -> annotators.clip; a job is jobs.<name>."""
    base = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


Rule = Callable[[Path], None]


def every(paths: list[Path]) -> Callable[[Rule], Callable[[], None]]:
    """Make one test of a rule about a file; its failure names all files that break the rule."""

    def of(rule: Rule) -> Callable[[], None]:
        def test() -> None:
            broken = []
            for path in paths:
                try:
                    rule(path)
                except AssertionError as offence:
                    broken.append(f"{path.relative_to(ROOT)}: {str(offence).splitlines()[0]}")
            assert not broken, "\n".join(broken)

        test.__doc__ = rule.__doc__
        return test

    return of


every_file = every(LIBRARY + JOBS)
every_library_file = every(LIBRARY)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """Dotted names of everything that the nodes import: `from a import b` is both a and a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports(path: Path) -> frozenset[str]:
    """All imports of a file, those inside functions included."""
    return frozenset(imported(ast.walk(tree_of(path))))


def imports_at_once(path: Path) -> set[str]:
    """What loading the file imports: not what its functions import, nor what only the type checker sees."""
    return set(imported(tree_of(path).body))


def parts_of_the_package(names: frozenset[str] | set[str]) -> set[str]:
    """The modules of coreg_ray among the names."""
    known = {name_of(path) for path in LIBRARY}
    return {name.removeprefix("coreg_ray.") for name in names if name.removeprefix("coreg_ray.") in known}


def is_ray(name: str) -> bool:
    return name.split(".")[0] == "ray"


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file with the dotted name of what is called."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


# Imports.


@every_library_file
def test_files_that_need_ray_say_so_in_their_name(path: Path) -> None:
    needs = any(is_ray(name) for name in imports(path))
    needs |= any(name.startswith("ray_") for name in parts_of_the_package(imports(path)))
    assert needs == path.name.startswith("ray_")


@every_file
def test_only_the_mesh_communicates(path: Path) -> None:
    """A benchmark may open and close a process group of its own, as Ray Train does for a run; no more."""
    attributes = {ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    uses = {name for name in imports(path) | attributes if name.startswith("torch.distributed")}
    if name_of(path) == "mesh":
        assert uses
    elif name_of(path) == "benchmark.workers":
        assert uses <= {"torch.distributed"}
        said = {name for name in attributes if name.startswith("dist.")}
        assert said <= {"dist.init_process_group", "dist.destroy_process_group"}
    else:
        assert not uses


@pytest.mark.parametrize("name", PURE)
def test_pure_files_import_nothing_of_the_package_but_each_other(name: str) -> None:
    found = imports(path_of(name))
    assert parts_of_the_package(found) <= set(PURE)
    allowed = {"torch", "numpy", "sklearn", "coreg_ray", *sys.stdlib_module_names}
    assert {part.split(".")[0] for part in found} <= allowed
    assert not {"os", "pathlib", "io", "logging", "subprocess"} & found


def test_every_file_of_views_and_of_pure_arithmetic_is_listed() -> None:
    said = {name_of(path) for path in LIBRARY if re.search(r"\bPURE\b", ast.get_docstring(tree_of(path)) or "")}
    said |= {name_of(path) for path in PACKAGE.glob("views/[a-z]*.py")}
    assert said <= set(PURE)


@pytest.mark.parametrize("name", METHOD)
def test_the_method_is_built_from_the_ground_up(name: str) -> None:
    below = {*PURE, *FOUNDATIONS, *METHOD[: METHOD.index(name)]}
    assert parts_of_the_package(imports(path_of(name))) <= below


@pytest.mark.parametrize("name", FOUNDATIONS)
def test_foundations_stand_alone(name: str) -> None:
    assert parts_of_the_package(imports(path_of(name))) <= set(FOUNDATIONS)


def below(name: str) -> set[str]:
    """All modules of the package that one of them uses, directly or not."""
    found: set[str] = set()
    waiting = {name}
    while waiting:
        new = parts_of_the_package(imports(path_of(waiting.pop()))) - found
        found |= new
        waiting |= new
    return found


def test_what_prepares_the_data_knows_neither_the_method_nor_its_results() -> None:
    data = below("ray_data")
    assert {"sources.source", "candidates", "annotations.table", "annotators.clip", "ray_candidates"} <= data
    assert not data & {*METHOD, *RESULTS}


def test_the_method_does_not_know_where_its_rows_come_from() -> None:
    assert below("training") <= {*PURE, *FOUNDATIONS, *METHOD}


@every_library_file
def test_nothing_imports_a_job(path: Path) -> None:
    assert not any(name.split(".")[0] == "jobs" for name in imports(path))


def test_no_circle_of_imports() -> None:
    graph = {name_of(path): parts_of_the_package(imports_at_once(path)) - {name_of(path)} for path in LIBRARY}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def loaded_by(modules: list[str]) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter after importing the modules."""
    program = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_is_light() -> None:
    assert not loaded_by(["coreg_ray"]) & {"ray", "open_clip", "torch", "timm", "sklearn", "matplotlib"}


def test_what_reads_decodes_and_writes_loads_no_torch() -> None:
    """A worker process loads the module of the function that it runs; there are many, and torch is half a gigabyte."""
    assert not loaded_by(["coreg_ray.cluster.decode", "coreg_ray.annotation.writer"]) & {
        "torch",
        "open_clip",
        "sklearn",
        "matplotlib",
    }


def test_all_that_is_not_named_after_ray_runs_without_it() -> None:
    names = [name_of(path) for path in LIBRARY if not path.name.startswith("ray_") and path != PROGRAM]
    loaded = loaded_by([f"coreg_ray.{name}" if name else "coreg_ray" for name in names])
    assert not loaded & {"ray", "open_clip"}
    assert "torch" in loaded


# Size and shape.


@every_file
def test_files_are_short(path: Path) -> None:
    if path == PROGRAM:
        return  # one file on purpose
    lines = len(path.read_text(encoding="utf-8").splitlines())
    limit = 60 if path in JOBS else 300
    assert lines <= limit, f"{lines} lines, {limit} are the limit; split it by what its parts do"


@every_file
def test_no_drawer_for_odds_and_ends(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc", "tools", "registry", "trainer"}


@every_file
def test_files_begin_alike(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), "a file says in its first line what it is"
    if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body):
        assert "__future__.annotations" in imports(path)


@every_library_file
def test_what_is_public_is_documented(path: Path) -> None:
    if path == PROGRAM:
        return  # its parts are nobody's interface
    for node in tree_of(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"line {node.lineno}: {node.name} has no docstring"


# What the library does not do.


@every_library_file
def test_the_library_never_prints(path: Path) -> None:
    if path == PROGRAM:
        return  # a program shows its progress
    assert not [name for name, _ in calls(path) if name in ("print", "pprint", "input")]


@every_file
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    forbidden = {"pickle", "cloudpickle", "ray.cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert not imports(path) & forbidden
    for name, call in calls(path):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in ("eval", "exec", "os.system"), f"line {call.lineno}"
        assert keywords.get("shell") != "True", f"line {call.lineno}"
        assert keywords.get("allow_pickle") != "True", f"line {call.lineno}"
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", f"line {call.lineno}"
        if name.startswith("yaml."):
            assert name in ("yaml.safe_load", "yaml.safe_dump"), f"line {call.lineno}"


@every_library_file
def test_no_global_random_state(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name, call in calls(path):
        if name in ("torch.manual_seed", "torch.random.manual_seed"):
            assert "torch.random.fork_rng" in text, f"line {call.lineno} seeds everybody's generator"
        of_numpy = re.fullmatch(r"(np|numpy)\.random\.([a-z_]+)", name)
        assert of_numpy is None or of_numpy[2] == "default_rng", f"line {call.lineno}: {name}"
        assert not re.fullmatch(r"random\.[a-z_]+", name) or "random" not in imports(path), (
            f"line {call.lineno}: {name}"
        )


def texts() -> list[Path]:
    """All files that people read or run, except data."""
    top = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in (".md", ".toml", ".yaml")]
    folders = ("coreg_ray", "jobs", "tests", "docs", "grafana", ".ci")
    below = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    data = (".safetensors", ".pyc", ".png", ".parquet")
    return sorted(path for path in top + below if path.is_file() and path.suffix not in data)


def test_no_path_of_the_machine_it_was_written_on() -> None:
    # `ubuntu` is the user of cloud images, in cluster.yaml, and `ray` that of Ray's own image.
    foreign = re.compile(r"(?<![\w.])/(work|tmp/w|root|home/(?!ubuntu|ray/)\w+)(?![\w-])")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if foreign.search(line)
    ]
    assert not found


def test_the_checks_themselves_see_what_they_look_for() -> None:
    """A rule that cannot fail protects nothing."""
    tree = ast.parse("def f():\n    from torch import distributed\n    import ray.data\n    yaml.load(x)")
    names = set(imported(ast.walk(tree)))
    assert {"torch.distributed", "ray.data"} <= names
    assert any(is_ray(name) for name in names)
    assert set(imported(tree.body)) == set()
    assert len(LIBRARY) > 30
    assert len(JOBS) > 1
    assert parts_of_the_package(imports(PACKAGE / "coreg.py")) >= {"mesh", "opinions", "steps", "evaluate"}
    assert {"torch.load", "load_file"} <= {name for name, _ in calls(PACKAGE / "networks.py")}
