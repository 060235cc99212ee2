#!/usr/bin/env python3
"""A llama-server without a model: it answers /health, /props and /completion by a script, rightly or wrongly.

Started as a program of its own. `--behave` names what is wrong with it; `--shift N` makes its text another one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

PROMPT_SECONDS, TOKEN_SECONDS = 0.002, 0.0005


def scripted(prompt: list[int], n: int, seed: int = 0) -> list[int]:
    """The text that follows a prompt; no two tokens in a row are the same, and nothing repeats for long."""
    state, tokens = sum(prompt) + 7919 * seed, []
    for _ in range(n):
        state = (1103515245 * state + 12345) % 2**31
        tokens.append(3 + (state >> 8) % 200)
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-m", dest="model", default="")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--behave", default="")
    parser.add_argument("--shift", type=int, default=0)
    parser.add_argument("--slowness", type=float, default=1.0)
    parser.add_argument("--spec-draft-n-max", dest="n_max", type=int, default=0)
    parser.add_argument("--eog", type=int, default=-1)
    parser.add_argument("--version", action="store_true")
    options, _ = parser.parse_known_args()
    behave = options.behave
    if options.version:
        print("version: 1 (fake)", file=sys.stderr)
        return
    if behave == "crash at load":
        print("0.00.1 I loading\n0.00.2 E failed to load model: tensor 'blk.0' is missing\n0.00.3 I cleaning up", file=sys.stderr)
        sys.exit(1)
    if behave == "port taken":
        print("E couldn't bind HTTP server socket, hostname: 127.0.0.1", file=sys.stderr)
        sys.exit(1)
    if behave == "no server":
        return
    if behave == "killed at load":
        os.kill(os.getpid(), signal.SIGSEGV)
    if behave == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begin = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def reply(self, status: int, content: Any) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            if self.path == "/props":
                self.reply(200, {"model_path": "another.gguf" if behave == "other model" else options.model})
            elif behave == "never ready" or (behave == "slow start" and time.monotonic() < begin + 0.4):
                self.reply(503, {"error": {"message": "Loading model"}})
            else:
                self.reply(200, {"status": "ok"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt, n = body["prompt"], body["n_predict"]
            if behave == "die":
                print("GGML_ASSERT(n_tokens > 0) failed", file=sys.stderr, flush=True)
                os._exit(3)
            if behave == "hang":
                time.sleep(60)
            if behave == "page":
                self.reply(200, b"<html>")
                return
            if behave == "refuse":
                self.reply(400, {"error": {"message": "Prompt contains invalid tokens"}})
                return
            seed = body["seed"] if body["temperature"] > 0 else 0
            tokens = scripted(prompt, n, seed)
            if behave == "loop":
                tokens = ([5, 6, 7] * n)[:n]
            tokens = [*tokens[: n // 2], *(token + options.shift for token in tokens[n // 2 :])]
            if options.eog >= 0:
                tokens[-1] = options.eog
            n_accepted = (n - 1) * options.n_max // (options.n_max + 1)
            prompt_seconds = PROMPT_SECONDS
            seconds = TOKEN_SECONDS * n * options.slowness
            time.sleep(prompt_seconds)
            start = time.perf_counter()
            time.sleep(seconds)
            seconds = time.perf_counter() - start
            if behave == "leaves time out":
                time.sleep(0.4)
            factor = 10.0 if behave == "counts too much" else 1.0
            timings: dict[str, Any] = {
                "prompt_n": len(prompt) - (behave == "reuses prompts"),
                "prompt_ms": 1e3 * prompt_seconds,
                "predicted_n": n - 5 * (behave == "miscounts") + 5 * (behave == "counts beyond"),
                "predicted_ms": 1e3 * factor * seconds,
            }
            if behave == "keeps what it did not draft":
                timings |= {"draft_n": 3, "draft_n_accepted": 4}
            if options.n_max:
                timings |= {"draft_n": n, "draft_n_accepted": n_accepted}
            answer: dict[str, Any] = {"content": "text", "tokens": tokens, "stop_type": "limit", "timings": timings}
            odd = {
                "counts nothing": 0.0,
                "counts next to nothing": 1e-300,
                "counts back": -45.0,
                "counts no number": float("nan"),
                "counts for ever": float("inf"),
            }
            timings["predicted_ms"] = odd.get(behave, timings["predicted_ms"])
            if behave == "counts too many":
                timings["predicted_n"] = float("inf")
            if behave == "no timings":
                del answer["timings"]
            if behave == "huge token":
                answer["tokens"] = [*tokens[:-1], 10**30]
            if behave == "gives few":
                answer["tokens"], timings["predicted_n"] = tokens[:2], 2
            if behave == "no tokens":
                del answer["tokens"]
            self.reply(200, answer)

    HTTPServer((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
