"""The rules of the house, checked on the source itself. To change a rule, change it here together with the code.

python tests/test_architecture.py --draw        rooms, floors and arrows
"""

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

# From the ground up: a room imports only rooms before it. Those of one line do not know one another.
ORDER = (
    ("errors", "ids", "metrics", "config", "embedded"),
    ("pure",),
    ("run",),
    ("images",),
    ("annotation",),
    ("training",),
    ("methods",),
    ("deploy",),
    ("report", "review", "search"),
    ("cluster",),
    ("studies",),
    ("commands",),
    ("cli",),
    ("jobs",),
)
MOST_ROOMS, MOST_FLOORS = 20, 11


def room_of(path: Path) -> str:
    """The top-level file or folder of the package that a file lies in; empty for the package's own `__init__`."""
    if path.is_relative_to(ROOT / "jobs"):
        return "jobs"
    top = path.relative_to(PACKAGE).parts[0]
    return "" if top == "__init__.py" else top.removesuffix(".py")


ROOMS = sorted({room_of(path) for path in LIBRARY + JOBS} - {""})

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


def nodes_that_run(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING`, which only the type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes_that_run(node)


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
    """All imports of a file that can run, those inside functions included."""
    return frozenset(imported(nodes_that_run(tree_of(path))))


def imports_at_once(path: Path) -> set[str]:
    """What loading the file imports: not what its functions import."""
    return set(imported(tree_of(path).body))


def rooms_in(names: frozenset[str] | set[str]) -> set[str]:
    """The rooms of the package among imported names."""
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "coreg_ray" and len(part) > 1 and part[1] in ROOMS}


@cache
def arrows() -> dict[str, set[str]]:
    """Which rooms each room imports, `__init__` files apart: they may import anything late."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in LIBRARY + JOBS:
        if path.name != "__init__.py":
            found[room_of(path)] |= rooms_in(imports(path)) - {room_of(path)}
    return found


@cache
def floors() -> dict[str, int]:
    """The floor of each room: one above the highest that it stands on."""
    levels: dict[str, int] = {}
    for room in TopologicalSorter(arrows()).static_order():
        levels[room] = 1 + max((levels[below] for below in arrows()[room]), default=0)
    return levels


def is_ray(name: str) -> bool:
    return name.split(".")[0] == "ray"


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file with the dotted name of what is called."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


# Rooms.


def test_every_room_has_its_place_in_the_order() -> None:
    assert sorted(room for line in ORDER for room in line) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_stands_before_it(room: str) -> None:
    place = next(number for number, line in enumerate(ORDER) if room in line)
    assert arrows()[room] <= {below for line in ORDER[:place] for below in line}


def test_no_circle_between_rooms() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of rooms: {' -> '.join(error.args[1])}")


def test_no_circle_of_files() -> None:
    """Imports inside functions included: a circle that is only hidden is one all the same."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in LIBRARY}
    known = set(names.values())
    graph = {
        name: {other for other in imports(path) if other in known} - {name}
        for path, name in names.items()
        if path.name != "__init__.py"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_house_is_small() -> None:
    assert len(ROOMS) <= MOST_ROOMS
    assert max(floors().values()) <= MOST_FLOORS


def test_jobs_import_commands_alone() -> None:
    assert arrows()["jobs"] == {"commands"}


@every_file
def test_only_the_cluster_imports_ray(path: Path) -> None:
    if room_of(path) != "cluster":
        assert not any(is_ray(name) for name in imports(path))


@every_file
def test_studies_and_commands_reach_the_cluster_late(path: Path) -> None:
    """So that `--help`, and what needs no Ray, start without it."""
    measures_ray = {"annotation", "pool", "prediction", "purifying"}  # studies of the cluster itself
    if room_of(path) in ("commands", "cli") or (room_of(path) == "studies" and path.stem not in measures_ray):
        assert "cluster" not in rooms_in(imports_at_once(path))


@every_library_file
def test_pure_files_import_torch_and_numpy_alone(path: Path) -> None:
    if room_of(path) == "pure":
        assert rooms_in(imports(path)) <= {"pure"}
        allowed = {"torch", "numpy", "coreg_ray", *sys.stdlib_module_names}
        assert {name.split(".")[0] for name in imports(path)} <= allowed
        assert not {"os", "pathlib", "io", "logging", "subprocess"} & imports(path)


@every_file
def test_only_the_mesh_communicates(path: Path) -> None:
    """A study may open and close a process group of its own, as Ray Train does for a run; no more."""
    attributes = {ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    uses = {name for name in imports(path) | attributes if name.startswith("torch.distributed")}
    if path == PACKAGE / "training/mesh.py":
        assert uses
    elif path == PACKAGE / "studies/workers.py":
        assert uses <= {"torch.distributed"}
        called = {name for name in attributes if name.startswith("dist.")}
        assert called <= {"dist.init_process_group", "dist.destroy_process_group"}
    else:
        assert not uses


PARENTS = {"dividemix.py": "coreg"}  # methods that are a variation of another


@every_library_file
def test_a_method_imports_no_other_method(path: Path) -> None:
    if room_of(path) == "methods" and path.name != "__init__.py":
        others = {name.split(".")[2] for name in imports(path) if name.startswith("coreg_ray.methods.")}
        assert others <= {PARENTS.get(path.name)}


@every_library_file
def test_the_loop_knows_no_method(path: Path) -> None:
    if room_of(path) in ("training", "deploy"):
        assert not any(name.startswith("coreg_ray.methods") for name in imports(path))


@every_file
def test_only_the_run_folder_knows_names_of_files_in_it(path: Path) -> None:
    names = {"config.yaml", "metrics.json", "history.csv", "baselines.json", "borrowed.json", "search.json"}
    if room_of(path) not in ("run", "config"):
        constants = {node.value for node in ast.walk(tree_of(path)) if isinstance(node, ast.Constant)}
        assert not names & {value for value in constants if isinstance(value, str)}


def loaded_by(modules: list[str]) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter after importing the modules."""
    program = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=1500, check=False
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


def test_all_but_the_cluster_runs_without_ray() -> None:
    paths = [path for path in LIBRARY if room_of(path) != "cluster" and path != PROGRAM]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    measures_ray = {f"coreg_ray.studies.{name}" for name in ("annotation", "pool", "prediction", "purifying")}
    loaded = loaded_by([name for name in names if name not in measures_ray])
    assert not loaded & {"ray", "open_clip", "sklearn"}
    assert "torch" in loaded


# Size and shape.


@every_file
def test_files_are_short(path: Path) -> None:
    if path == PROGRAM:
        return  # one file on purpose
    lines = len(path.read_text(encoding="utf-8").splitlines())
    limit = 20 if path in JOBS else 300
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


@every_file
def test_names_say_what_things_are(path: Path) -> None:
    """Names that once stood for anything; `key` and `share` had four and five meanings."""
    stored = {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}
    stored |= {node.arg for node in ast.walk(tree_of(path)) if isinstance(node, ast.arg)}
    assert not stored & {"said", "found", "wanted", "heir_of"}


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
def test_nothing_is_mocked(path: Path) -> None:
    assert not any(name.startswith("unittest") for name in imports(path))


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
    top = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in (".md", ".toml", ".yaml", ".cff")]
    folders = ("coreg_ray", "jobs", "tests", "docs", "grafana", ".ci", ".github")
    below = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    data = (".safetensors", ".pyc", ".png", ".parquet", ".gz")
    return sorted(path for path in top + below if path.is_file() and path.suffix not in data)


def test_no_path_of_the_machine_it_was_written_on() -> None:
    # `ubuntu` is the user of cloud images, in cluster.yaml, and `ray` that of Ray's own image.
    foreign = re.compile(r"(?<![\w.])/(work|tmp/w|root|home/(?!ubuntu|ray/)\w+)(?![\w-])")
    places = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if foreign.search(line)
    ]
    assert not places


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_marks_of_the_second_lane_stand_where_its_collection_looks_for_them() -> None:
    """tests/conftest.py passes over files in whose text they do not stand in full, for this very lane."""
    lane = '"slow or cluster"'
    assert f"pytest -m {lane}" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert f"markexpr != {lane}" in (ROOT / "tests/conftest.py").read_text(encoding="utf-8")
    marks = {
        f"{path.relative_to(ROOT)}: {mark[0]}"
        for path in (ROOT / "tests").rglob("*.py")
        for mark in re.finditer(r"[\w.]*\bmark\.(slow|cluster)\b|import mark\b", path.read_text(encoding="utf-8"))
        if mark[0] not in ("pytest.mark.slow", "pytest.mark.cluster")
    }
    assert marks <= {"tests/test_architecture.py: import mark"}


def test_the_checks_themselves_see_what_they_look_for() -> None:
    """A rule that cannot fail protects nothing."""
    tree = ast.parse("def f():\n    from torch import distributed\n    import ray.data\n    yaml.load(x)")
    names = set(imported(nodes_that_run(tree)))
    assert {"torch.distributed", "ray.data"} <= names
    assert any(is_ray(name) for name in names)
    assert set(imported(tree.body)) == set()
    hidden = ast.parse("if TYPE_CHECKING:\n    import a\nelse:\n    import b")
    assert set(imported(nodes_that_run(hidden))) == set()
    assert len(LIBRARY) > 30
    assert len(JOBS) > 1
    assert {"training", "pure", "run"} <= arrows()["deploy"]
    assert "cluster" in arrows()["commands"]
    assert {"torch.load", "load_file"} <= {name for name, _ in calls(PACKAGE / "training/timm_models.py")}


def draw() -> str:
    """Floors from the top down, each room with what it imports."""
    levels = floors()
    count = sum(map(len, arrows().values()))
    lines = [f"{len(ROOMS)} rooms on {max(levels.values())} floors, {count} arrows"]
    for floor in range(max(levels.values()), 0, -1):
        for room in sorted(room for room, level in levels.items() if level == floor):
            files = sum(room_of(path) == room for path in LIBRARY + JOBS)
            below = ", ".join(sorted(arrows()[room], key=lambda other: (-levels[other], other))) or "-"
            lines.append(f"{floor:2}  {room:10} {files:3} files  -> {below}")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] != ["--draw"]:
        sys.exit("usage: python tests/test_architecture.py --draw")
    sys.stdout.write(f"{draw()}\n")
