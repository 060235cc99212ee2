"""Puts text into the clipboard: by the desktop's own program, or by asking the terminal."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess

from entmtp_local.chat.terminal import Terminal
from entmtp_local.errors import UsageError

# (program and arguments, the variable without which it would wait for a desktop that is not there)
_PROGRAMS = (
    (("pbcopy",), None),
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
    (("xsel", "--clipboard", "--input"), "DISPLAY"),
)
# Terminals drop longer sequences without a word.
_MAX_SEQUENCE = 74_994


def copy(text: str, terminal: Terminal) -> str:
    """Copy text.

    Returns: what was done, for the user.
    Raises: UsageError where there is no way.
    """
    content = text.encode("utf-8", errors="replace")
    for command, variable in _PROGRAMS:
        if shutil.which(command[0]) is None or (variable is not None and not os.environ.get(variable)):
            continue
        try:
            subprocess.run(command, input=content, check=True, timeout=5, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.SubprocessError):
            continue
        return f"copied, {len(text)} characters"
    encoded = base64.b64encode(content).decode()
    if not terminal.can_move or len(encoded) > _MAX_SEQUENCE:
        raise UsageError("there is no clipboard here: install wl-clipboard, xclip or xsel.")
    # OSC 52, which most terminals know, also through ssh
    terminal.draw(f"\x1b]52;c;{encoded}\x07")
    return f"handed to the terminal's clipboard, {len(text)} characters"
