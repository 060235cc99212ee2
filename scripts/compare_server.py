#!/usr/bin/env python3
"""Decode the same prompts with this runtime and with stock llama-server, in turn, and print the ratio of their speeds.

Both decode the same token ids greedily with the same threads and context size; the order alternates (ours, stock, stock,
ours, ...), the first pair is dropped. Speed is llama.cpp's own: tokens after the first, per second between the first and
the last. The last line is one JSON object.

    scripts/setup --with-stock
    .venv/bin/python scripts/compare_server.py [MODEL] --policy chain:3 --draft-max 3
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from entmtp_local.engine import generate  # noqa: E402
from entmtp_local.native.session import Session, SessionOptions, physical_cores  # noqa: E402
from entmtp_local.speculative.policy import parse_policy  # noqa: E402
from entmtp_local.speculative.sampling import SamplingOptions  # noqa: E402
from scripts.reference.script import positive, run  # noqa: E402

PROMPTS = {
    "code": "def main():\n    parser = argparse.ArgumentParser(",
    "prose": "The following example shows",
    "arithmetic": "Question: what is 37 times 12?\nAnswer:",
    "dialogue": "<|im_start|>user\nExplain how a list works and give an example.<|im_end|>\n<|im_start|>assistant\n",
}


class Server:
    """Stock llama-server on a free loopback port."""

    def __init__(self, binary: Path, model: Path, arguments: list[str], n_ctx: int, n_threads: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        threads = str(n_threads)
        command = [str(binary), "-m", str(model), "--host", "127.0.0.1", "--port", str(self.port), "-c", str(n_ctx)]
        command += ["-t", threads, "-tb", threads, "-np", "1", "--cache-ram", "0", "--ctx-checkpoints", "0", "-fit", "off"]
        self.process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(300):
            if self.process.poll() is not None:
                sys.exit(f"{binary} ended with code {self.process.returncode}; to see why: {' '.join(command + arguments)}")
            try:
                self.get("/health")
                return
            except OSError:
                time.sleep(0.1)
        sys.exit(f"{binary} did not become ready within 30 seconds")

    def get(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            return dict(json.load(response))

    def complete(self, prompt: list[int], n: int) -> tuple[float, list[int]]:
        """Tokens per second and the tokens."""
        answer = self.get(
            "/completion",
            {
                "prompt": prompt,
                "n_predict": n,
                "temperature": 0,
                "samplers": ["temperature"],
                "cache_prompt": False,
                "stream": False,
                "return_tokens": True,
            },
        )
        timings = answer["timings"]
        return (timings["predicted_n"] - 1) / (timings["predicted_ms"] / 1e3), answer["tokens"]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=ROOT / "models" / "reference-11m.gguf")
    parser.add_argument("--server", type=Path, default=ROOT / "build" / "stock" / "bin" / "llama-server")
    parser.add_argument("--policy", default="chain:3")
    parser.add_argument("--draft-max", type=int, default=3, help="stock's --spec-draft-n-max; 0 = without speculation")
    parser.add_argument("--stock-arg", action="append", default=[], help="further argument for the server (repeatable)")
    parser.add_argument("-n", type=positive, default=256)
    parser.add_argument("--pairs", type=positive, default=9)
    parser.add_argument("--threads", type=int, default=physical_cores())
    options = parser.parse_args()
    if not options.server.is_file():
        sys.exit(f"there is no stock server at {options.server}; build it with scripts/setup --with-stock, or give --server PATH")

    n_ctx = 2048
    policy = parse_policy(options.policy)
    speculation = ["--spec-type", "draft-mtp", "--spec-draft-n-max", str(options.draft_max)] if options.draft_max else []
    server = Server(options.server, options.model, [*speculation, *options.stock_arg], n_ctx, options.threads)
    session_options = SessionOptions(
        options.model, n_ctx=n_ctx, n_threads=options.threads, max_depth=policy.max_depth, max_nodes=policy.max_nodes
    )
    report: dict[str, Any] = {"model": options.model.name, "policy": policy.name, "draft_max": options.draft_max, "prompts": {}}
    try:
        with Session.open(session_options) as session:
            for name, text in PROMPTS.items():
                prompt = session.tokenize(text, add_special=True, parse_special=True)
                ours: list[float] = []
                stock: list[float] = []
                texts: dict[str, list[int]] = {}

                def run_ours(prompt: list[int] = prompt, ours: list[float] = ours, texts: dict[str, list[int]] = texts) -> None:
                    session.clear()
                    with session.new_sampler(SamplingOptions(temp=0)) as sampler:
                        generation = generate(session, prompt, policy=policy, sampler=sampler, max_tokens=options.n)
                        for _ in generation:
                            pass
                    ours.append(generation.stats.tokens_per_second)
                    texts["ours"] = generation.tokens

                def run_stock(
                    prompt: list[int] = prompt, stock: list[float] = stock, texts: dict[str, list[int]] = texts
                ) -> None:
                    speed, texts["stock"] = server.complete(prompt, options.n)
                    stock.append(speed)

                for pair in range(options.pairs + 1):
                    for run in (run_ours, run_stock) if pair % 2 == 0 else (run_stock, run_ours):
                        run()
                ratios = [a / b for a, b in zip(ours[1:], stock[1:], strict=True)]
                differs = next((i for i, (a, b) in enumerate(zip(texts["ours"], texts["stock"], strict=False)) if a != b), None)
                report["prompts"][name] = {
                    "ours": statistics.median(ours[1:]),
                    "stock": statistics.median(stock[1:]),
                    "ratio": statistics.median(ratios),
                    "ratio_min": min(ratios),
                    "ratio_max": max(ratios),
                    "wins": sum(r > 1 for r in ratios),
                    "pairs": len(ratios),
                    "first_difference": differs,
                }
                row = report["prompts"][name]
                print(
                    f"{name:11s} ours {row['ours']:8.1f} t/s   stock {row['stock']:8.1f} t/s   ratio {row['ratio']:.3f} "
                    f"({row['ratio_min']:.3f}..{row['ratio_max']:.3f}, {row['wins']} of {row['pairs']} pairs)   "
                    f"{'same text' if differs is None else f'texts differ from token {differs}'}"
                )
    finally:
        server.close()
    report["ratio_geomean"] = statistics.geometric_mean([row["ratio"] for row in report["prompts"].values()])
    print(json.dumps(report))


if __name__ == "__main__":
    run(main)
