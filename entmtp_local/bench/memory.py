"""What a process holds of main memory and of a GPU's, as the system tells it. Knows nothing of what the process does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def resident_bytes(pid: int, proc: Path = Path("/proc")) -> int | None:
    """The most main memory that a process has held, pages of mapped files included; None where the system does not tell."""
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB", (proc / str(pid) / "status").read_text(), re.MULTILINE)
    except OSError:
        return _resident_by_ps(pid)
    return int(match.group(1)) * 1024 if match else None


def _resident_by_ps(pid: int) -> int | None:
    # macOS has no /proc; what is held now is all that it tells
    found = _first_line("ps", "-o", "rss=", "-p", str(pid))
    return int(found) * 1024 if found is not None and found.strip().isdigit() else None


def device_bytes(pid: int) -> int | None:
    """Memory of NVIDIA GPUs that a process holds; None without such a GPU, or where it does not tell (in some containers)."""
    listing = _output("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    if listing is None:
        return None
    found = [row.split(",") for row in listing.splitlines() if row.count(",") == 1]
    held = [int(used) for owner, used in found if owner.strip() == str(pid) and used.strip().isdigit()]
    return sum(held) * 1024**2 if held else None


def _first_line(*command: str) -> str | None:
    found = _output(*command)
    return found.splitlines()[0] if found else None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
