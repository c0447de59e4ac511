"""YAML as people write it: safe-loaded, no key twice, and a sentence where it is broken."""

from __future__ import annotations

from typing import Any

from yaml import MappingNode, MarkedYAMLError, SafeLoader, YAMLError

from coreg_ray.errors import UserError


def parsed_yaml(content: bytes, place: str) -> Any:
    """What a YAML file holds.

    Args:
        place: what messages call the file.

    Raises:
        UserError: it is not UTF-8, no YAML, has a key twice, or holds more than one document.
    """
    try:
        loader = _Strict(content.decode("utf-8-sig"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise UserError(f"{place} cannot be read as text ({error}); save it as UTF-8") from error
    except (YAMLError, ValueError, OverflowError) as error:  # dates such as 2024-13-45 raise ValueError
        raise UserError(f"{place} is not valid YAML: {_reason(error)}") from error
    except (RecursionError, TypeError) as error:
        raise UserError(f"{place} is not valid YAML: it is nested too deep, or has a list as a key") from error


class _Strict(SafeLoader):
    """The safe loader, which would keep the last of two equal keys without a word."""

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """A mapping as it stands in the file, before anchors are merged into it."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key.value, str):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                problem = f"the key {key.value!r} occurs twice, in lines {lines[name]} and {line}; keep one"
                raise MarkedYAMLError(problem=problem)
            lines[name] = line
        return node


def _reason(error: Exception) -> str:
    """One line with the place, and the remedy where it is known."""
    if not isinstance(error, MarkedYAMLError):
        return " ".join(str(error).split())
    reason = " ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark or error.context_mark
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{reason}{place}" + ("; indent with spaces, not tabs" if "'\\t'" in reason else "")
