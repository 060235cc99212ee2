"""The processor that a model computes on."""

from __future__ import annotations

import os
from pathlib import Path


def physical_cores() -> int:
    """Cores to compute on: hyper-threads share the vector units that decoding needs."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        blocks = Path("/proc/cpuinfo").read_text().split("\n\n")
    except OSError:
        return available
    cores = set()
    for block in blocks:
        fields = dict(line.split(":", 1) for line in block.splitlines() if ":" in line)
        entries = {key.strip(): value.strip() for key, value in fields.items()}
        if "core id" in entries:
            cores.add((entries.get("physical id"), entries["core id"]))
    return max(1, min(available, len(cores) or available))
