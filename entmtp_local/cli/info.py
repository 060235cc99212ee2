"""`entmtp-local info`: what a model file holds and what this machine will do with it. No weights are loaded."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from entmtp_local.chat.trace_page import write_page
from entmtp_local.cli.abilities import MEMORIES, default_policy, drafting
from entmtp_local.cli.forecast import fit_of, fit_text, speed_of, speed_text
from entmtp_local.cli.machine import MAX_THREADS, memory_needed, most_checkpoint_bytes, readable_size
from entmtp_local.cli.models import complete_model, find_model
from entmtp_local.cli.options import MAX_N_CTX, beyond_training, default_n_ctx
from entmtp_local.errors import EngineError, UsageError, visible
from entmtp_local.files import check_writable
from entmtp_local.native import library
from entmtp_local.native.model_file import ModelInfo, check_pair, read_model
from entmtp_local.native.session import SessionOptions
from entmtp_local.native.source import find_layout
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.protocol import Limits, Policy

_HEADS = {
    "single": "1 block, used at every depth",
    "chained": "{n} blocks, one for each depth",
    "shared": "{n} blocks in a file of their own that read the model's cache",
    "none": "none",
}


@click.command()
@click.argument("model", required=False, shell_complete=complete_model)
@click.option(
    "-c",
    "--ctx",
    "--n-ctx",
    "n_ctx",
    type=click.IntRange(16, MAX_N_CTX),
    metavar="N",
    help="Tokens of context to plan for. Default: as for chat.",
)
@click.option(
    "--policy",
    metavar="POLICY",
    help="What to draft, as for run.",
)
@click.option("--mtp-model", type=click.Path(path_type=Path), metavar="FILE", help="A file with the MTP head.")
@click.option("--threads", "n_threads", type=click.IntRange(1, MAX_THREADS), metavar="N", help="CPU threads to plan for.")
@click.option(
    "--gpu-layers", "n_gpu_layers", type=click.IntRange(min=0), metavar="N", help="Layers on the GPU to plan for. Default: all."
)
@click.option("--profile", type=click.Path(path_type=Path), metavar="FILE", help="What tells of the speed, as for chat.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE", help="Draw what chat --trace-file wrote, with --html.")
@click.option("--html", type=click.Path(path_type=Path), metavar="OUT", help="Where the page of --trace is written.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def info(
    model: str | None,
    n_ctx: int | None,
    policy: str | None,
    mtp_model: Path | None,
    n_threads: int | None,
    n_gpu_layers: int | None,
    profile: Path | None,
    as_json: bool,
    trace: Path | None,
    html: Path | None,
    debug: bool,
) -> None:
    """Describe a model file and what this machine will do with it.

    MODEL is the path of a .gguf file, or a model of the hub that was fetched; without it the shipped model is described. It is
    said whether the file has an MTP head, what memory the model needs and whether it fits this GPU, or main memory where there is
    none, and the speed that a kept profile lets expect. Only the file's header is read. With --trace and
    --html, the trace of a chat is drawn instead.

    \b
    Examples:
      entmtp-local info
      entmtp-local info model.gguf --n-ctx 32768
      entmtp-local info owner/model-GGUF:Q4_K_M --json
      entmtp-local info --trace trace.json --html trace.html
    """
    if (trace is None) != (html is None):
        raise UsageError("--trace FILE and --html OUT go together: the one is drawn into the other.")
    if trace is not None and html is not None:
        check_writable(html)
        write_page(trace, html)
        return
    files = find_model(model, mtp_model, fetch=False)
    about = read_model(files.path)
    head = about
    if files.mtp_path is not None:
        head = read_model(files.mtp_path, role="mtp")
        check_pair(about, head)
    chosen = parse_policy(default_policy(about, head) if policy is None else policy)
    facts = _facts(about, head, n_ctx or default_n_ctx(about), chosen, n_gpu_layers)
    options = SessionOptions(files.path, files.mtp_path, n_threads=n_threads, n_gpu_layers=n_gpu_layers)
    verified = chosen.within(_limits(about, head, facts["drafting"], chosen))
    facts["speed"] = speed_of(options, verified, profile, facts["drafting"], shlex.join([model] if model else []))
    if beyond := beyond_training(about, facts["memory"]["n_ctx"]):
        click.echo(beyond, err=True)
    click.echo(json.dumps(facts) if as_json else _as_text(facts))


def _facts(about: ModelInfo, head: ModelInfo, n_ctx: int, chosen: Policy, n_gpu_layers: int | None) -> dict[str, Any]:
    sidecar = None if head is about else head
    can_draft, reason = drafting(about, head)
    return {
        "model": str(about.path),
        "name": about.name,
        "architecture": about.arch,
        "quantisation": about.quantisation,
        "size_bytes": about.size_bytes,
        "n_layer": about.n_layer,
        "n_embd": about.n_embd,
        "n_vocab": about.n_vocab,
        "n_ctx_train": about.n_ctx_train,
        "chat_template": bool(about.chat_template),
        "mtp": {"kind": head.head_kind, "n_blocks": head.n_layer_nextn, "file": str(head.path)} if head.has_mtp else None,
        "memory": {
            "kind": about.memory_kind,
            "n_ctx": n_ctx,
            "needed_bytes": memory_needed(about, sidecar, n_ctx, chosen),
            "checkpoint_bytes": most_checkpoint_bytes(about, n_ctx),
            "kv_bytes_per_token": about.kv_bytes_per_token,
            "state_bytes": about.state_bytes,
            "node_bytes": about.node_bytes,
        },
        "fit": fit_of(about, sidecar, n_ctx, chosen, n_gpu_layers),
        "policy": chosen.name,
        "verified_as": chosen.within(_limits(about, head, can_draft, chosen)).name,
        "drafting": can_draft,
        "reason": reason,
        "engine": _engine(),
    }


def _limits(about: ModelInfo, head: ModelInfo, can_draft: str, policy: Policy) -> Limits:
    """What a session will find, as far as the file tells."""
    depth = {"off": 0, "chains": policy.max_depth, "trees": policy.max_depth}[can_draft]
    if head.head_kind == "chained":
        depth = min(depth, head.n_layer_nextn)
    if about.memory_kind == "recurrent":
        depth = 0
    return Limits(trees=can_draft == "trees", max_depth=depth, max_nodes=policy.max_nodes if depth else 0, reason="")


def _engine() -> dict[str, str] | None:
    try:
        if not library.is_built():
            return None
        return {**library.engine_info(), "device": library.device_name()}
    except EngineError:
        return None


def _as_text(facts: dict[str, Any]) -> str:
    memory, mtp, engine = facts["memory"], facts["mtp"], facts["engine"]
    head = _HEADS[mtp["kind"]].format(n=mtp["n_blocks"]) if mtp else _HEADS["none"]
    copies = f"; a chat keeps up to {readable_size(n)} of states to go back to" if (n := memory["checkpoint_bytes"]) else ""
    needed = f"about {readable_size(memory['needed_bytes'])} with the weights at -c {memory['n_ctx']}"
    same = facts["policy"] == facts["verified_as"]
    rows = [
        ("model", f"{facts['name']} ({facts['model']})"),
        ("architecture", f"{facts['architecture']}, {facts['n_layer']} layers, {facts['n_vocab']} tokens in the vocabulary"),
        ("quantisation", f"{facts['quantisation']}, {readable_size(facts['size_bytes'])}"),
        ("context", f"trained for {facts['n_ctx_train']} tokens"),
        ("chat template", "in the file" if facts["chat_template"] else "none"),
        ("MTP head", head),
        ("memory", f"{needed}: {MEMORIES[memory['kind']]}{copies}"),
        ("fits", fit_text(facts["fit"], memory["n_ctx"], facts["n_ctx_train"])),
        ("can draft", f"{facts['drafting']}: {facts['reason']}"),
        ("policy", facts["policy"] + ("" if same else f", verified as {facts['verified_as']}")),
        (
            "engine",
            f"{engine['backend']} on {engine['device']}" if engine else f"not built yet; run {find_layout().rerun}",
        ),
    ]
    speed = speed_text(facts["speed"])
    rows += [("speed", speed[0]), *(("", line) for line in speed[1:])]
    width = max(len(name) for name, _ in rows)
    # names come from files and folders
    return "\n".join(f"{name:<{width}}  {visible(str(value))}" for name, value in rows)
