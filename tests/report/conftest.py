"""A browser for all that look at a report."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium import chromium


@pytest.fixture(scope="module")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chromium(tmp_path_factory.mktemp("profile")) as address:
        yield address
