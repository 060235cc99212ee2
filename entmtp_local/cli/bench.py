"""`entmtp-local bench`: this runtime against plain decoding, stock llama.cpp and other servers, on this machine."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from entmtp_local.bench import workloads
from entmtp_local.bench.record import Record
from entmtp_local.bench.results import results
from entmtp_local.bench.rounds import Plan, Say, compare_distributions, look_for_settings, measure, plain_texts, try_out
from entmtp_local.bench.server import check_binary
from entmtp_local.bench.table import Progress, table
from entmtp_local.calibration.calibrate import fingerprint
from entmtp_local.chat.interrupt import ended_by_signals, never_lost
from entmtp_local.cli.bench_models import BenchedModel
from entmtp_local.cli.machine import MAX_THREADS
from entmtp_local.cli.models import complete_model, find_model
from entmtp_local.cli.options import HEAD_TYPES, MAX_N_CTX, parse_draft_head_type, parse_draft_vocab
from entmtp_local.errors import UsageError
from entmtp_local.files import check_writable, held
from entmtp_local.native.source import find_layout
from entmtp_local.speculative.sampling import SamplingOptions

EXIT_INTERRUPTED = 130

_SWEEPS = ("quick", "full", "default")
# Enough to tell settings apart; those that are chosen are measured in full.
_SWEEP_PROMPTS = 2
_SWEEP_TOKENS = {"quick": 64, "full": 96, "default": 0}
_BUILD_STOCK = "build it with scripts/setup --with-stock, or name one with --stock PATH"


def _parse_temps(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        temps = tuple(dict.fromkeys(float(part) for part in value.split(",")))
        for temp in temps:
            SamplingOptions(temp=temp)
    except (ValueError, UsageError):
        raise click.BadParameter(f"{value!r} is not a list of temperatures of 0 or more, such as 0,0.8.", ctx, param) from None
    return temps


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@click.option(
    "--policies",
    metavar="A,B,...",
    help="What is compared: names as for --policy; @full drafts from the whole "
    "vocabulary, @no-copy copies nothing; TASK stands for the workload. Default: off,chain:3,hydra:7,entmtp,throughput.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME|FILE",
    help="code, math, chat, prose, or a file of prompts: JSON "
    'lines with "prompt", or a .txt with a prompt a line. May be repeated. Default: all four.',
)
@click.option("--temps", callback=_parse_temps, default="0,0.8", metavar="T,...", help="Temperatures. Default: 0,0.8.")
@click.option(
    "-n",
    "--tokens",
    "n_tokens",
    type=click.IntRange(min=2),
    default=256,
    metavar="N",
    help="Of each answer, at most. Default: 256.",
)
@click.option("--prompts", "n_prompts", type=click.IntRange(1, 999), default=2, metavar="N", help="Of each workload. Default: 2.")
@click.option(
    "--rounds",
    "n_rounds",
    type=click.IntRange(min=1),
    default=6,
    metavar="N",
    help="Pairs of measurements; below 5 no ratio can be relied on. Default: 6.",
)
@click.option(
    "--warmup",
    "n_warmup",
    type=click.IntRange(min=1),
    default=48,
    metavar="N",
    help="Tokens that each arm decodes before it counts. Default: 48.",
)
@click.option("--cool-down", type=click.FloatRange(min=0), default=0.0, metavar="S", help="Seconds of rest before each visit.")
@click.option(
    "--stock",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A llama-server of stock llama.cpp. Default: the one of scripts/setup --with-stock.",
)
@click.option("--no-stock", is_flag=True, help="Compare with plain decoding only.")
@click.option("--stock-args", default="", metavar="TEXT", help="Further arguments for the stock server.")
@click.option(
    "--sweep",
    "sweep_effort",
    type=click.Choice(_SWEEPS),
    default="quick",
    help="Settings of stock's MTP that are tried: quick 8, full 90, default its own alone. Default: quick.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar='"NAME=PATH ARGS"',
    help="Another server that answers as llama-server does, with its own arguments. May be repeated.",
)
@click.option(
    "--chi-square",
    "n_draws",
    type=click.IntRange(min=100),
    metavar="N",
    help="Draw a token N times by every arm, and test that its distribution is that of plain decoding.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Keep every figure; for --resume, too."
)
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a page with plots.")
@click.option("--resume", is_flag=True, help="Go on with the file of --json; more --rounds than before are measured as well.")
@click.option(
    "-c", "--ctx", "n_ctx", type=click.IntRange(256, MAX_N_CTX), metavar="N", help="Tokens of context. Default: as for chat."
)
@click.option("--threads", "n_threads", type=click.IntRange(1, MAX_THREADS), metavar="N", help="CPU threads, of every arm.")
@click.option(
    "--gpu-layers", "n_gpu_layers", type=click.IntRange(min=0), metavar="N", help="Layers to keep on the GPU, of every arm."
)
@click.option("--mtp-model", type=click.Path(path_type=Path), metavar="FILE", help="A file with the MTP head.")
@click.option(
    "--draft-vocab", callback=parse_draft_vocab, default="auto", metavar="N|auto|full", help="As for chat. Default: auto."
)
@click.option(
    "--draft-head-type", callback=parse_draft_head_type, default="auto", metavar=HEAD_TYPES, help="As for chat. Default: auto."
)
@click.option("--verbose", is_flag=True, help="Show llama.cpp's own log.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def bench(models: tuple[str, ...], **options: Any) -> None:
    """Measure how much faster this runtime is than stock llama.cpp, with your models on this machine.

    Every arm decodes the same token ids with the same sampler settings, threads and context, in a process of its own. Rounds
    take turns (ABBA); a ratio is the median over rounds, beside it the interval that holds it with 95 % confidence. Ratios are
    over the fastest stock arm of each workload: plain, or MTP with its best setting. At temperature 0 all texts are compared
    with plain decoding, and an arm that writes anything else is not counted. Texts that loop are counted apart. Ctrl-C keeps
    what is measured.

    \b
    Examples:
      entmtp-local bench model.gguf --json bench.json --report bench.html
      entmtp-local bench model.gguf --json bench.json --resume
      entmtp-local bench model-Q4_0.gguf model-Q8_0.gguf --no-stock
      entmtp-local bench model.gguf --peer "ik=/opt/ik/llama-server --spec-type mtp"
    """
    sys.exit(_bench(models, options))


def _bench(models: tuple[str, ...], options: dict[str, Any]) -> int:
    for name in ("json_file", "report"):
        if options[name] is not None:
            check_writable(options[name])
    if options["resume"] and options["json_file"] is None:
        raise UsageError("--resume goes on with the file of --json FILE; name it.")
    with nullcontext() if options["json_file"] is None else held(options["json_file"]):
        return _run(models, options)


def _run(models: tuple[str, ...], options: dict[str, Any]) -> int:
    files = [find_model(model, options["mtp_model"]) for model in models or (None,)]
    chosen = _chosen(options["tasks"] or workloads.NAMES, options["n_prompts"])
    stock = _stock(options)
    peers = _peers(options["peers"])
    out = Progress(sys.stderr)
    with ended_by_signals(), never_lost() as check:

        def say(done: int, n: int, what: str) -> None:
            check()
            out(done, n, what)

        try:
            benches = [BenchedModel(i, each, options, chosen, stock, peers) for i, each in enumerate(files)]
            settings = _settings(benches, options, chosen, stock, peers)
            created = datetime.now(timezone.utc).isoformat(timespec="seconds")
            record = Record.begin(options["json_file"], settings, created, resume=options["resume"])
            _name_models(record, benches)
            if stock is None and not options["no_stock"]:
                _note(f"there is no stock llama-server to compare with: {_BUILD_STOCK}. Ratios are over plain decoding.")
        except KeyboardInterrupt:
            raise click.Abort from None
        code = 0
        try:
            _measure(record, benches, options, say)
            record.content["complete"] = True
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        finally:
            out.clear()
    found = results(record)
    record.content["results"] = found
    record.save()
    # before the table, which may be cut off by who reads it
    if options["report"] is not None:
        # seldom wanted
        from entmtp_local.bench.report import write_report

        write_report(options["report"], record.content, found)
    for line in table(record.content, found):
        click.echo(line)
    if code:
        kept = options["json_file"]
        _note("interrupted; " + ("the same command with --resume goes on." if kept else "with --json FILE it could be resumed."))
    return code


def _measure(record: Record, benches: Sequence[BenchedModel], options: Mapping[str, Any], say: Say) -> None:
    plan = _plan(benches, options)
    subjects = []
    for each in benches:
        subject = each.subject(record)
        subjects.append(subject)
        try_out(subject, plan, say)
        plain_texts(record, subject, plan)
        look_for_settings(record, plan, subject, each.swept(), _SWEEP_PROMPTS, _SWEEP_TOKENS[options["sweep_effort"]], say)
        each.check_sweep(record)
    measure(record, plan, subjects, say)
    warm = [temp for temp in plan.temps if temp > 0]
    if options["n_draws"] and warm:
        for subject in subjects:
            compare_distributions(record, plan, subject, warm[0], options["n_draws"], say)


# -- what was asked


def _plan(benches: Sequence[BenchedModel], options: Mapping[str, Any]) -> Plan:
    return Plan(
        options["temps"],
        tuple(benches[0].prepared.prompts),
        options["n_tokens"],
        options["n_rounds"],
        options["n_warmup"],
        options["cool_down"],
        SamplingOptions(),
    )


def _settings(
    benches: Sequence[BenchedModel],
    options: Mapping[str, Any],
    chosen: Mapping[str, Sequence[workloads.Prompt]],
    stock: Path | None,
    peers: Mapping[str, tuple[str, ...]],
) -> dict[str, Any]:
    """What all figures of a record have in common; a resumed one has to have the same. It names no folders of this machine."""
    sampling = SamplingOptions()
    prepared = benches[0].prepared
    return {
        "device": prepared.device,
        "engine": prepared.engine,
        "models": [fingerprint(each.info.path) for each in benches],
        "n_threads": benches[0].n_threads,
        "n_gpu_layers": options["n_gpu_layers"],
        "n_ctx": [each.n_ctx for each in benches],
        "draft_vocab": options["draft_vocab"],
        "draft_head_type": options["draft_head_type"],
        "policies": [[choice.name for choice in each.choices] for each in benches],
        "workloads": list(chosen),
        "prompts": hashlib.sha256(repr(sorted(prepared.prompts.items())).encode()).hexdigest(),
        "temps": list(options["temps"]),
        "sampling": {"top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": sampling.min_p},
        "n_tokens": options["n_tokens"],
        "n_prompts": options["n_prompts"],
        "n_rounds": options["n_rounds"],
        "n_warmup": options["n_warmup"],
        "cool_down": options["cool_down"],
        "chi_square": options["n_draws"],
        "sweep": options["sweep_effort"],
        "stock": _version(stock) if stock is not None else None,
        "stock_args": options["stock_args"],
        "peers": {name: [f"{Path(command[0]).name} {_digest(command[0])}", *command[1:]] for name, command in peers.items()},
    }


def _name_models(record: Record, benches: Sequence[BenchedModel]) -> None:
    if record.content["models"]:
        return
    abouts = [each.about for each in benches]
    often = Counter(about["label"] for about in abouts)
    for each, about in zip(benches, abouts, strict=True):
        if often[about["label"]] > 1:
            about["label"] = f"{each.info.path.parent.name}/{about['label']}"
    record.content["models"] = abouts


def _chosen(names: Sequence[str], n: int) -> dict[str, list[workloads.Prompt]]:
    """The first n prompts of each workload, and one more to warm up with: calibration takes the last ones."""
    found = {}
    for name in names:
        prompts = workloads.load(name)
        label = name if name in workloads.NAMES else Path(name).stem
        if label in found:
            raise UsageError(f"two workloads are called '{label}'; rename {name}.")
        # a file with no more than that warms up with its last one
        found[label] = [*prompts[:n], prompts[min(n, len(prompts) - 1)]]
    return found


def _stock(options: Mapping[str, Any]) -> Path | None:
    if options["no_stock"]:
        for name in ("stock", "stock_args"):
            if options[name]:
                raise UsageError(f"--{name.replace('_', '-')} and --no-stock exclude each other; give one of them.")
        return None
    if options["stock"] is not None:
        path: Path = options["stock"]
        check_binary(path, "--stock", _BUILD_STOCK)
        # without its folder, a program is looked for in PATH
        return path.absolute()
    path = find_layout().root / "stock" / "bin" / "llama-server"
    return path if path.is_file() else None


def _peers(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, _, rest = text.partition("=")
        try:
            command = shlex.split(rest)
        except ValueError as error:
            raise UsageError(f"--peer '{text}' cannot be read ({error}); give NAME=PATH and arguments.") from None
        if not name or not command:
            raise UsageError(f"--peer '{text}' is not NAME=PATH with the server's own arguments after it.")
        if name in found:
            raise UsageError(f"two peers are called '{name}'; rename one.")
        check_binary(Path(command[0]), f"--peer {name}", "give NAME=PATH of a server program")
        found[name] = (str(Path(command[0]).absolute()), *command[1:])
    return found


def _version(binary: Path) -> str:
    """What a server says of itself; a program that says nothing is tried all the same."""
    try:
        done = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return "unknown"
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("version")]
    built = binary.parent.parent / "stock.json"
    try:
        digest = str(json.loads(built.read_text(encoding="utf-8")).get("source_sha256", ""))[:16]
    except (OSError, ValueError, AttributeError):
        digest = ""
    return " ".join(filter(None, [*lines[:1], digest])) or "unknown"


def _digest(program: str) -> str:
    """Tells two builds of one name apart."""
    try:
        return hashlib.sha256(Path(program).read_bytes()).hexdigest()[:16]
    except OSError:
        return "unknown"


def _note(text: str) -> None:
    click.echo(text, err=True)
