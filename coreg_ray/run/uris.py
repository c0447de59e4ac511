"""Paths and URIs as users write them: what may be put at their end, and what is not for others to see."""

from __future__ import annotations

import re
from typing import Any

_OPTIONS = re.compile(r"\?\w+=.*$", re.DOTALL)
# Users and passwords, also with a slash in them, as keys of object stores have; a port before a path is none.
_CREDENTIALS = re.compile(r"(?<=://)(?:[^/@\s]+|[^/@\s:]+:(?!\d+/)[^@\s?]+)@")
_URI = re.compile(r"\w://\S+")
_SECRET = re.compile(
    r"(?P<name>[?&;][\w.-]*(?:key|secret|token|passw|credential|signature|\bsig\b)[\w.-]*=)[^&;\s'\"<>)\]}]+",
    re.IGNORECASE,
)


def split_options(uri: str) -> tuple[str, str]:
    """A URI without its `?name=value&...`, which tell of an object store of one's own, and these; a path has none."""
    options = _OPTIONS.search(uri) if "://" in uri else None
    return (uri[: options.start()], options.group()) if options else (uri, "")


def extended(uri: str, tail: str) -> str:
    """A path or URI with `tail` at the end of its path; a URI's options stay behind it."""
    path, options = split_options(uri)
    return f"{path.rstrip('/')}{tail}{options}"


def shortened(uri: str, tail: str) -> str:
    """A path or URI without `tail` at the end of its path, where it is there."""
    path, options = split_options(uri)
    return path.rstrip("/").removesuffix(tail) + options


def without_credentials(content: Any) -> Any:
    """Texts, or lists and dictionaries of them, without the user, password and keys in any URI."""
    if isinstance(content, dict):
        return {name: without_credentials(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_credentials(value) for value in content]
    if not isinstance(content, str):
        return content
    return _URI.sub(lambda uri: _SECRET.sub(r"\g<name>***", uri.group()), _CREDENTIALS.sub("", content))
