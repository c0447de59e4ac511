"""What the site has besides docs/: CONTRIBUTING.md and CHANGELOG.md, which a forge wants at the top of the repository.

MkDocs calls these functions (`hooks` in mkdocs.yml). Links between docs/ and the top are written for the forge and lead
to the same pages on the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

TOP = Path(__file__).parents[1]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie at the top."""
    for name in PAGES:
        content = re.sub(r"\]\(docs/", "](", (TOP / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links that leave docs/ to where their pages are on the site."""
    return re.sub(rf"\]\((?:\.\./)+({'|'.join(map(re.escape, PAGES))})", r"](\1", markdown)
