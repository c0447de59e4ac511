"""How much memory there is."""

from __future__ import annotations

import os


def physical_memory() -> int:
    """Bytes of memory this process may use: the machine's, or its container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(limit) as file:  # noqa: PTH123 (a kernel file, not a path of ours)
                total = min(total, int(file.read()))
        except (OSError, ValueError):
            continue
    return total
