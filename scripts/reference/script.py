"""How a script ends: bad input is one sentence, as it is for the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from entmtp_local.errors import EntMTPError


def run(main: Callable[[], None]) -> None:
    """Run a script's main function; an EntMTPError becomes its sentence and exit code, Ctrl-C the code 130."""
    try:
        main()
    except EntMTPError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1")
    return int(text)
