"""The pages of docs/reference/, made from the code. tests/test_reference.py says when they are out of date.

python tests/make_reference.py            writes them
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from coreg_ray import cli
from coreg_ray.commands.base import Command
from coreg_ray.config import Config
from coreg_ray.config.method import FITTED
from coreg_ray.config.sections import decides
from coreg_ray.run.inventory import ENTRIES, STEPS

ROOT = Path(__file__).parents[1]
HERE = ROOT / "docs/reference"
RENEW = "python tests/make_reference.py"
MADE = f"<!-- Made by `{RENEW}`; change the code, not this page. -->"
_DECIDES = {"result": "yes", "start": "where a run begins", "nothing": "no"}
_WORDS: dict[Any, str] = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text"}


def page(title: str, *parts: str) -> str:
    """A page of Markdown."""
    return "\n\n".join([f"# {title}", MADE, *(part.strip("\n") for part in parts if part)]) + "\n"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown; bars in cells are escaped, as a forge wants them."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# Settings.


def settings_page() -> str:
    """Every section and setting of the configuration."""
    intro = """\
Everything that a run depends on. On the command line `--section.key VALUE`, in a `--config` file nested or
dotted; unknown keys are refused. A preset lies over the defaults, a file over that, the command line over everything.
*Decides the result*: a setting that does is part of the run's fingerprint, and the same `--output` refuses another
value; all others may change from call to call. Defaults are those without a preset; the embedded digits have those of
the preset `digits`."""
    top = [(name, field) for name, field in Config.model_fields.items() if not is_section(field.annotation)]
    parts = ["## At the top", settings_table(top, "", "result")]
    for name, field in Config.model_fields.items():
        if is_section(field.annotation):
            parts += section(field.annotation, name, decides(field))
    return page("Every setting", intro, *parts, "## Presets", presets())


def section(model: Any, name: str, above: str) -> Iterator[str]:
    """A section's heading, what it is, its settings, and then the sections in it."""
    yield f"{'#' * (2 + name.count('.'))} {name}"
    yield plain(model.__doc__ or "")
    yield settings_table(
        [entry for entry in model.model_fields.items() if not is_section(entry[1].annotation)], name, above
    )
    if name == "method":
        fitted = ", ".join(f"`{key}`" for key in FITTED)
        yield f"Fitted to the number of images where nobody gives them (docs/results.md): {fitted}."
    for inner, field in model.model_fields.items():
        if is_section(field.annotation):
            yield from section(field.annotation, f"{name}.{inner}", above)


def settings_table(entries: list[tuple[str, FieldInfo]], above: str, whole: str) -> str:
    """Settings, a line each; `whole`: what the section that they are in decides."""
    rows = []
    for name, field in entries:
        key = f"{above}.{name}" if above else name
        decided = _DECIDES["nothing" if whole == "nothing" else decides(field)]
        rows.append([f"`{key}`", kind(field), default(field), decided, field.description or ""])
    return table(["setting", "value", "default", "decides the result", "what it is"], rows)


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def kind(field: FieldInfo) -> str:
    """Type and limits of a setting, in words."""
    words = type_in_words(field.annotation)
    limits = in_words(field.metadata)
    return f"{words}, {limits}" if limits else words


def type_in_words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_in_words(inner[0])
    if origin in (Union, UnionType):
        several = [type_in_words(part) for part in inner if part is not type(None)]
        return " or ".join(several)
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in inner)
    if origin is list:
        return f"list of {'annotators' if is_section(inner[0]) else 'texts'}"
    if origin is dict:
        return f"mapping to {type_in_words(inner[1])}s"
    return _WORDS[annotation]


def in_words(limits: list[Any]) -> str:
    """Limits as pydantic keeps them: from, to, above, below, multiple of."""
    known = {
        name: getattr(entry, name)
        for entry in limits
        for name in ("ge", "le", "gt", "lt", "multiple_of")
        if hasattr(entry, name)
    }
    texts = [
        f"{word} {known[name]}"
        for name, word in (
            ("ge", "from"),
            ("gt", "above"),
            ("le", "to"),
            ("lt", "below"),
            ("multiple_of", "multiple of"),
        )
        if known.get(name) is not None
    ]
    return " ".join(texts)


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "empty"
    value = field.default
    return (
        f"`{value}`"
        if isinstance(value, str)
        else f"`{value:g}`"
        if isinstance(value, float)
        else f"`{json.dumps(value)}`"
    )


def presets() -> str:
    """Every preset, and what its file says of it."""
    rows = []
    for path in sorted((ROOT / "coreg_ray/presets").glob("*.yaml")):
        words = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        rows.append([f"`{path.stem}`", " ".join(words).replace("<", "&lt;")])
    return "`--preset NAME`, or several, each laid over the one before: `--preset digits,method-elr`.\n\n" + table(
        ["preset", "what it is"], rows
    )


def plain(text: str) -> str:
    """A docstring as paragraphs."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", re.sub(r"\n +", "\n", text)).strip()


# Commands.


def commands_page() -> str:
    """Every command, what it does, and the flags that are its own."""
    intro = """\
`coreg-ray NAME` and, in a checkout, `python jobs/NAME.py` run the same. All but `show`, `review` and
`benchmark` take [every setting](settings.md) too, `--config FILE` and `--preset NAME`. A command on a finished run
takes the run's folder as its first word."""
    parts = []
    for name in cli.COMMANDS:
        module = import_module(f"coreg_ray.commands.{name}")
        first, _, rest = (module.__doc__ or "").partition("\n")
        parts += [f"## {name}", first, *described(rest)]
        rows = flags(module)
        parts.append(table(["flag", "value", "default", "what it is"], rows) if rows else "It has no flags of its own.")
    return page("Every command", intro, *parts)


def described(text: str) -> Iterator[str]:
    """The paragraphs of a command's docstring; lines that are commands become a block of them."""
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
        if lines and lines[0].startswith(("coreg-ray ", "curl ")):
            split = [re.split(r"\s{2,}", line, maxsplit=1) for line in lines]
            if any(line.startswith("curl ") for line in lines):
                yield "<!-- needs: a running server -->"
            yield "\n".join(["```bash", *("  # ".join(parts) for parts in split), "```"])
        elif lines:
            yield plain(paragraph)


def flags(module: ModuleType) -> list[list[str]]:
    """A command's own flags: name, value, default, meaning."""
    known = [
        entry for entry in vars(module).values() if isinstance(entry, type) and entry.__module__ == module.__name__
    ]
    for command in known:
        if issubclass(command, Command):
            own = {name: field for name, field in command.model_fields.items() if name not in Command.model_fields}
            return [
                [f"`--{name}`", kind(field), default(field), field.description or ""] for name, field in own.items()
            ]
    if hasattr(module, "_FLAGS"):
        return [
            [f"`--{name}`", "`true` or `false`" if value is True else "whole number", f"`{json.dumps(value)}`", meaning]
            for name, (_, value, meaning) in module._FLAGS.items()
        ]
    made: argparse.ArgumentParser | None = getattr(module, "parser", lambda: None)()
    shown = [action for action in made._actions if action.dest != "help"] if made else []
    return [
        [
            f"`{action.option_strings[0]}`",
            "stands alone" if action.nargs == 0 else _value_of(action),
            "empty",
            str(action.help),
        ]
        for action in shown
    ]


def _value_of(action: argparse.Action) -> str:
    return {int: "whole number", Path: "file"}.get(action.type, "text")  # type: ignore[call-overload]


# The run folder.


def run_folder_page() -> str:
    """Every file and folder of a run."""
    intro = """\
What `--output` names. Files are written whole or not at all. `coreg-ray show RUN` tells of a run what lies
there and how much it takes. Delete nothing while a command works there. `<split>` is `pool` or `test`; folders that
`borrowed.json` names lie in another run: do not delete what another run has borrowed."""
    steps = table(
        ["step", "taken by"],
        [
            [step, ", ".join(f"`{name}`" if name in cli.COMMANDS else name for name in names.split(", "))]
            for step, names in STEPS.items()
        ],
    )
    rows = [
        [
            f"`{entry.path}`" if entry.is_top else f"&nbsp;&nbsp;`{entry.path.removeprefix(entry.top + '/')}`",
            entry.what,
            entry.by,
            entry.may_go or ("no" if entry.is_top else ""),
        ]
        for entry in ENTRIES
    ]
    return page(
        "Every file of a run", intro, "## Who writes what", steps, "## Files and folders",
        "What is indented lies in the folder above it, and may be deleted with it alone.",
        table(["name", "what it holds", "written by", "may be deleted"], rows),
    )  # fmt: skip


# The package.


def python_page() -> str:
    """The public names of the package, as stubs."""
    intro = """\
`import coreg_ray` loads neither Ray nor open_clip nor torch; the first model loads torch. Everything below
is typed. What else the package holds is laid out in [development.md](../development.md#layout)."""
    tree = tree_of("coreg_ray")
    public = import_module("coreg_ray").__all__
    known: dict[str, Definition] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("coreg_ray."):
            known |= {alias.name: definition(str(node.module), alias.name) for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            known[node.name] = node
    parts = []
    for name in [*(name for name in public if name in known), *sorted(known.keys() - {*public})]:
        if not name.startswith("_"):
            heading = f"coreg_ray.{name}" if name in public else name
            parts += [f"## {heading}", f"```python\n{stub(known[name])}\n```"]
    return page("Python", intro, *parts)


Definition = ast.FunctionDef | ast.ClassDef


def tree_of(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def definition(module: str, name: str) -> Definition:
    """A class or function of a module, or of the module that it takes it from."""
    for node in tree_of(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return definition(str(node.module), name)
    raise LookupError(f"{module} has no {name}")


def stub(node: Definition) -> str:
    """A signature with its docstring; of a class those of its public methods too."""
    return ast.unparse(shortened(node))


def shortened(node: Definition) -> Definition:
    made = copy.copy(node)
    documented = ast.get_docstring(node, clean=False)
    made.body = [ast.Expr(ast.Constant(... if documented is None else documented))]
    if isinstance(node, ast.ClassDef):
        inner = [one for one in node.body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")]
        made.body += [shortened(one) for one in inner if ast.get_docstring(one)]
    kept = ("property", "classmethod", "staticmethod")
    made.decorator_list = [one for one in node.decorator_list if ast.unparse(one) in kept]
    return made


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "commands.md": commands_page,
    "run-folder.md": run_folder_page,
    "python.md": python_page,
}

if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(f"usage: {RENEW}")
    HERE.mkdir(parents=True, exist_ok=True)
    for name, made in PAGES.items():
        (HERE / name).write_text(made(), encoding="utf-8")
