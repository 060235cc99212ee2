"""What showing a streamed answer costs beside decoding it: processor time of the chat's own thread for each token.

Tokens of a Markdown text come at a fixed rate by a clock that only this script moves, one a step, and are drawn on a
pseudo-terminal that something else empties; that is everything the chat does for a token beside decoding it. The last line is one
JSON object; `share` is the part of a token's time that showing it took.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import pty
import struct
import sys
import termios
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from entmtp_local.chat.settings import Settings
from entmtp_local.chat.show import Show
from entmtp_local.chat.store import Journal
from entmtp_local.chat.stream import TextStream
from entmtp_local.chat.terminal import Terminal
from entmtp_local.engine import Step, StepSeconds
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.static import OFF
from entmtp_local.speculative.tree import ROOT_ONLY, DraftTree
from entmtp_local.speculative.verify import STRICT

PROSE = (
    "Speculative decoding drafts **several tokens** at once and verifies them in *one pass* of the model, so that the weights, "
    "which are what a step has to read, are read once for all of them. A draft that is `rejected` costs its verification and "
    "nothing else. How many tokens are worth drafting depends on the text: see [the paper](https://example.org/paper) for it.\n\n"
)
LIST = "".join(f"- item {i} of the list has a **bold** word and some `code` in it\n" for i in range(6)) + "\n"
CODE = """```python
def accept(tree, rows, sampler):
    path = [0]
    while True:
        token = sampler.sample(rows(path[-1]))
        child = tree.child(path[-1], token)  # follow the target's own choice
        if child is None:
            return path, token
        path.append(child)


print("done", 1.5)
```

"""
TABLE = "| policy | tokens | speed |\n|---|---|---|\n" + "".join(f"| chain:{i} | {i}.5 | 1.{i} |\n" for i in range(1, 5)) + "\n"
TEXTS = {
    "prose": PROSE * 12,
    "list": ("## A list\n\n" + LIST) * 10,
    "code": CODE * 10,
    "mixed": (PROSE + LIST + CODE + TABLE) * 5,
}


def open_terminal(columns: int, rows: int) -> tuple[Terminal, io.TextIOWrapper]:
    """A terminal whose output a thread reads and forgets."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def drain() -> None:
        while True:
            try:
                if not os.read(master, 65536):
                    return
            except OSError:
                return

    threading.Thread(target=drain, daemon=True).start()
    stdout = io.TextIOWrapper(os.fdopen(slave, "wb"), encoding="utf-8")
    return Terminal(stdout, stdout, stdout, show_stats=False), stdout


class Pieces:
    """A vocabulary of the pieces of one text."""

    def __init__(self, text: str, n_characters: int) -> None:
        self.pieces = [text[i : i + n_characters].encode() for i in range(0, len(text), n_characters)]

    def piece(self, token: int, *, special: bool) -> bytes:
        return self.pieces[token]


def cost(kind: str, text: str, rate: float, columns: int, rows: int, n_characters: int) -> dict[str, float]:
    """Processor seconds of showing one text, and of noting it in a journal, a token a step."""
    terminal, stdout = open_terminal(columns, rows)
    now = 0.0

    def clock() -> float:
        return now

    settings = Settings(OFF, STRICT, SamplingOptions(), "strict", markdown=kind == "markdown")
    vocabulary = Pieces(text, n_characters)
    n = len(vocabulary.pieces)
    steps = [Step((i,), DraftTree(ROOT_ONLY, (i,)), (0,), StepSeconds(0.0, 0.0, 0.0, 0.0, 0.0)) for i in range(n)]
    with TemporaryDirectory() as folder:
        show = Show(terminal, settings, vocabulary, inside=False, journal=Journal(Path(folder) / "part", "?"), clock=clock)
        stream = TextStream()
        begin = time.thread_time()
        for step in steps:
            show.step(step, stream)
            now += 1 / rate
        show.finish(stream)
        seconds = time.thread_time() - begin
    stdout.close()
    return {"n_tokens": n, "us_per_token": round(1e6 * seconds / n, 2), "share": round(seconds / n * rate, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=200.0, help="tokens a second (200)")
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--characters", type=int, default=4, help="of a token (4)")
    options = parser.parse_args()
    os.environ.setdefault("TERM", "xterm-256color")
    # what is loaded at the first use is not part of streaming
    cost("markdown", TEXTS["mixed"], options.rate, options.columns, options.rows, options.characters)
    found = {}
    for kind in ("plain", "markdown"):
        for name, text in TEXTS.items():
            one = cost(kind, text, options.rate, options.columns, options.rows, options.characters)
            found[f"{kind} {name}"] = one
            print(
                f"{kind:9} {name:6} {one['n_tokens']:5} tokens, {one['us_per_token']:6.1f} us each: "
                f"{100 * one['share']:.2f} % of the time at {options.rate:g} tokens a second"
            )
    print(json.dumps({"rate": options.rate, "columns": options.columns, "rows": options.rows, "runs": found}))


if __name__ == "__main__":
    main()
