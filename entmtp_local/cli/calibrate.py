"""`entmtp-local calibrate`: measure a model on this device, or replay a log by any policy and any costs."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from entmtp_local.bench import workloads
from entmtp_local.calibration.advice import LEAST_GAIN, Advice, advise
from entmtp_local.calibration.calibrate import FULL, QUICK, Effort, Interrupted, calibrate, key_of, partial_path, profile_path
from entmtp_local.calibration.costs import load_table, shipped_tables
from entmtp_local.calibration.fit import fit_tasks
from entmtp_local.calibration.oracle import all_seeing, best_static, same_information
from entmtp_local.calibration.prompts import calibration_prompts, prompt_tokens
from entmtp_local.calibration.replay import replay
from entmtp_local.calibration.wide_log import WideLog
from entmtp_local.chat.interrupt import Interrupt
from entmtp_local.chat.model_template import template_of
from entmtp_local.cli.abilities import default_policy
from entmtp_local.cli.machine import MAX_THREADS
from entmtp_local.cli.models import complete_model, find_model
from entmtp_local.cli.options import HEAD_TYPES, MAX_N_CTX, open_for_drafts, parse_draft_head_type, parse_draft_vocab
from entmtp_local.cli.profiles import TEMPERATURE, profile_folder, progress
from entmtp_local.errors import ProfileError, UsageError, visible
from entmtp_local.files import check_writable
from entmtp_local.native.model_file import read_model
from entmtp_local.native.session import Session
from entmtp_local.speculative.cost import CostTable, is_disturbed
from entmtp_local.speculative.draft_vocab import SAME, DraftHead
from entmtp_local.speculative.expected import plain_speed
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import ALL, ENOUGH_DECODED, Key, Profile, paths_of
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.tree import TreeShape

EXIT_INTERRUPTED = 130
_FAR_OFF = 3.0  # times: machines are faster or slower by up to two, and texts longer than what costs are measured behind

REPLAYED = (
    "off", "chain:1", "chain:2", "chain:3", "chain:4", "chain:5", "chain:7", "medusa:7:TASK", "hydra:7:TASK", "hydra:15:TASK",
    "entmtp:TASK", "entmtp:constant:TASK", "entmtp:path:TASK", "entropy-chain:TASK", "throughput",
)  # fmt: skip


@click.command()
@click.argument("model", required=False, shell_complete=complete_model)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME|FILE",
    help='code, math, chat, prose, or a file of prompts: JSON lines with "prompt", or a .txt with a prompt a line. '
    "May be repeated; other tasks of the profile are kept. Default: all four.",
)
@click.option("--quick", is_flag=True, help="Only what a first use runs: some seconds.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the profile there, not to the cache folder.")
@click.option("--log", "log_file", type=click.Path(path_type=Path), metavar="FILE.npz", help="Keep the logged texts.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a page with plots.")
@click.option(
    "--temp",
    type=click.FloatRange(min=0),
    default=TEMPERATURE,
    metavar="T",
    help=f"Temperature that texts are logged at; 0 is greedy. Default: {TEMPERATURE}.",
)
@click.option(
    "--prompts", "n_prompts", type=click.IntRange(min=1), metavar="N", help=f"Prompts of each task. Default: {FULL.n_prompts}."
)
@click.option(
    "-n",
    "--tokens",
    "n_tokens",
    type=click.IntRange(min=4),
    metavar="N",
    help=f"Tokens of each text, at most. Default: {FULL.n_tokens}.",
)
@click.option("--restart", is_flag=True, help="Do not go on with an interrupted calibration.")
@click.option("--replay", "replayed", type=click.Path(path_type=Path), metavar="FILE.npz", help="Replay a log; needs no model.")
@click.option("--costs", metavar="NAME|PROFILE", help="What passes cost in the replay: a profile, or a table that is shipped.")
@click.option(
    "--policies", metavar="A,B,...", help="What to replay, such as chain:3,entmtp:TASK,throughput; TASK stands for each task."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "-c",
    "--ctx",
    "n_ctx",
    type=click.IntRange(256, MAX_N_CTX),
    default=2048,
    metavar="N",
    help="Tokens of context. Default: 2048.",
)
@click.option("--threads", "n_threads", type=click.IntRange(1, MAX_THREADS), metavar="N", help="CPU threads.")
@click.option("--gpu-layers", "n_gpu_layers", type=click.IntRange(min=0), metavar="N", help="Layers to keep on the GPU.")
@click.option("--mtp-model", type=click.Path(path_type=Path), metavar="FILE", help="A file with the MTP head.")
@click.option(
    "--draft-vocab", callback=parse_draft_vocab, default="auto", metavar="N|auto|full", help="As for chat. Default: auto."
)
@click.option(
    "--draft-head-type", callback=parse_draft_head_type, default="auto", metavar=HEAD_TYPES, help="As for chat. Default: auto."
)
@click.option("--verbose", is_flag=True, help="Show llama.cpp's own log.")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
def calibrate_command(model: str | None, **options: Any) -> None:
    """Measure what drafts cost and bring with a model on this device.

    Costs of passes, chances of drafts by task, trees and thresholds go into a profile, which chat and run find by themselves: it
    holds for this file, device, engine, --threads, --gpu-layers, --draft-vocab and --draft-head-type, and is not used for others.
    Ctrl-C ends it; started again, it goes on where it was.

    \b
    Examples:
      entmtp-local calibrate model.gguf                          all tasks, some minutes
      entmtp-local calibrate model.gguf --task notes.txt --report page.html
      entmtp-local calibrate --replay log.npz --costs rtx-3090-27b
    """
    if options["replayed"] is not None:
        unused = [
            each.opts[-1] if isinstance(each, click.Option) else each.human_readable_name
            for each in _given()
            if each.name not in _OF_REPLAYS
        ]
        if unused:
            raise UsageError(f"--replay takes all texts of its log and measures nothing; leave {', '.join(unused)} out.")
        _replay(options)
        return
    if options["costs"] or options["policies"]:
        raise UsageError("--costs and --policies belong to --replay FILE.npz.")
    sys.exit(_calibrate(model, options))


_OF_REPLAYS = {"replayed", "costs", "policies", "as_json", "report", "verbose", "debug"}  # what goes with --replay


def _given() -> Iterator[click.Parameter]:
    """What stands on the command line."""
    context = click.get_current_context()
    for each in context.command.params:
        if each.name is not None and context.get_parameter_source(each.name) is ParameterSource.COMMANDLINE:
            yield each


def _effort(options: dict[str, Any]) -> Effort:
    effort = QUICK if options["quick"] else FULL
    return replace(
        effort,
        n_prompts=options["n_prompts"] or effort.n_prompts,
        n_tokens=options["n_tokens"] or effort.n_tokens,
    )


def _calibrate(model: str | None, options: dict[str, Any]) -> int:
    effort = _effort(options)
    files = find_model(model, options["mtp_model"])
    tasks = options["tasks"] or workloads.NAMES
    _check_writable(
        [options[name] for name in ("out", "log_file", "report") if options[name] is not None],
        [files.path, files.mtp_path or files.path, *(Path(task) for task in tasks if task not in workloads.NAMES)],
    )
    chosen = calibration_prompts(tasks, effort.n_prompts)
    info, settings = open_for_drafts(files, options)
    with Interrupt() as interrupt, Session.open(settings, interrupt) as session:
        for notice in session.notices:
            click.echo(notice, err=True)
        if session.limits.max_depth == 0:
            raise UsageError(f"there is nothing to calibrate: {session.limits.reason or 'nothing can be drafted'}.")
        template = template_of(info, session)
        prompts = {task: [prompt_tokens(session, template, prompt) for prompt in some] for task, some in chosen.items()}
        key = key_of(session, settings)
        out = options["out"] or profile_path(profile_folder(), settings.model_path, key)
        if options["out"] is None:
            # fails here rather than after minutes
            profile_folder().mkdir(parents=True, exist_ok=True)
        before = _kept_before(out, key, tell=True)
        if before is not None and effort.quick and not before.quick:
            raise UsageError(f"{out} is a thorough calibration, which --quick does not replace; give another --out FILE.")
        if before is not None and before.head is not None and options["tasks"]:
            # compared on all tasks
            session.adopt_draft_head(before.head)
            effort = replace(effort, head_seconds=0.0)
        sampling = SamplingOptions(temp=options["temp"])
        partial = partial_path(profile_folder(), settings.model_path, key, prompts, sampling, effort)
        if options["restart"]:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        if _is_log(partial):
            click.echo("going on with a calibration that was interrupted; --restart begins anew.", err=True)
        try:
            with progress(lines=True) as say:
                profile, log = calibrate(session, key, prompts, sampling, effort, say, interrupt, partial)
        except Interrupted:
            kept = "the same command goes on from here" if _is_log(partial) else "nothing was kept yet"
            click.echo(f"interrupted: {kept}.", err=True)
            return EXIT_INTERRUPTED
    missing = [task for task in prompts if task not in profile.tasks]
    if missing:
        why = "its texts ended at once, or have no room in the context"
        if effort.quick:
            why = f"the machine was too slow or too busy to read its texts in {effort.log_seconds:.0f} seconds, or {why}"
        click.echo(f"nothing was learnt of {', '.join(missing)}: {why}.", err=True)
    if len(missing) == len(prompts):
        remedy = "leave out --quick, so that there is time for all of them, or " if effort.quick else ""
        raise UsageError(
            f"no profile was written; {remedy}give prompts that the model goes on from, or chat messages, or a larger -c."
        )
    disturbed = is_disturbed(profile.costs) or _decodes_otherwise(profile)
    if options["tasks"]:
        # another calibration may have written it meanwhile
        before = _kept_before(out, key) or before
    if before is not None and options["tasks"]:
        # what is known of other tasks, and of all together, stays
        others = [row for row in before.measured if row["task"] not in prompts or row["task"] in missing]
        profile = replace(
            profile,
            head=before.head or profile.head,
            tasks={**profile.tasks, **before.tasks, **{t: profile.tasks[t] for t in prompts if t not in missing}},
            measured=(*others, *profile.measured),
        )
    if disturbed:
        click.echo("something else ran while costs were measured, which are not to be relied on: calibrate again.", err=True)
    profile.save(out)
    # what people call it; a fingerprint tells it from all others
    log.about |= {"name": info.name, "file": settings.model_path.name, "device": key.device}
    if settings.mtp_path is not None:
        log.about["mtp_file"] = settings.mtp_path.name
    if options["log_file"] is not None:
        log.save(options["log_file"])
    if options["report"] is not None:
        _write_report(options["report"], profile, log)
    if options["as_json"]:
        print(out.read_text(encoding="utf-8"))
        return 0
    _show(profile, out)
    for what in ("log_file", "report"):
        if options[what] is not None:
            print(f"{what.removesuffix('_file')}: {visible(str(options[what]))}")
    default = default_policy(info, info if settings.mtp_path is None else read_model(settings.mtp_path, role="mtp"))
    found = [advise(profile, log, task, default, trees=session.limits.trees) for task in prompts if task not in missing]
    for line in _advice(found, default, _command(model, options)):
        print(visible(line))
    return 0


def _kept_before(path: Path, key: Key, tell: bool = False) -> Profile | None:
    """A profile that can be added to.

    Args:
        tell: say why what is there cannot be.
    """
    try:
        return Profile.load(path, key)
    except ProfileError as error:
        if tell and path.exists():
            click.echo(f"{visible(str(error).rpartition('; ')[0])}; it will be replaced.", err=True)
        return None


def _decodes_otherwise(profile: Profile) -> bool:
    """Whether plain decoding took far more or less than its costs: what ran beside one of them did not beside the other."""
    speeds = [row["tokens_per_second"] for row in profile.measured if row["policy"] == "off" and row["tokens_per_second"] > 0]
    return any(not 1 / _FAR_OFF < speed / plain_speed(profile) < _FAR_OFF for speed in speeds)


def _is_log(path: Path) -> bool:
    try:
        return bool(WideLog.load(path).texts)
    except UsageError:
        return False


def _check_writable(written: list[Path], read: list[Path]) -> None:
    """Raises: UsageError before minutes are spent on what cannot be written, or would replace something else."""
    for path in written:
        check_writable(path)
        if os.path.realpath(path) in map(os.path.realpath, read):
            raise UsageError(f"{path} is read by this command; write to another file.")
    if len(set(map(os.path.realpath, written))) < len(written):
        raise UsageError("--out, --log and --report name one file; give each its own.")


def _write_report(path: Path, profile: Profile, log: WideLog, *, costs_of: str | None = None) -> None:
    # seldom wanted, and every start of the program would load it
    from entmtp_local.calibration.report import write_report

    write_report(path, profile, log, costs_of=costs_of)


def _show(profile: Profile, out: Path) -> None:
    costs = profile.costs
    print("ms of verifying: " + ", ".join(f"{n}: {1e3 * seconds:.2f}" for n, seconds in costs.verify.items()))
    if costs.level:
        print(f"ms of a level of drafts: {1e3 * costs.level[1]:.2f}; of a draft beside its levels: {1e3 * costs.draft_fixed:.2f}")
    if profile.head is not None:
        for line in _head(profile.head):
            print(line)
    for task, fit in profile.tasks.items():
        first = fit.by_rank[0][0] if fit.by_rank else 0.0
        print(f"{visible(task)}: {fit.n_texts} texts, {fit.n_positions} tokens; first drafts accepted: {first:.2f}")
    if profile.measured:
        print("\nmeasured, tokens/s over plain decoding (tokens per step; tokens):")
        disturbed = few = False
        for row in profile.measured:
            doubtful = not profile.reliable_of(row["task"])
            disturbed |= doubtful
            n_tokens = row.get("n_tokens", ENOUGH_DECODED)
            few |= n_tokens < ENOUGH_DECODED
            mark = ("?" if doubtful else "") + ("*" if n_tokens < ENOUGH_DECODED else "")
            figures = f"{row['ratio']:.2f}{mark} ({row['tokens_per_step']:.2f}; {n_tokens})"
            print(f"  {visible(row['task']):8s} {visible(row['policy']):24s} {figures}")
        if disturbed:
            print(
                "? not used: drafts gained more than the tokens of their steps allow, so something else ran beside plain "
                "decoding; calibrate again when nothing does."
            )
        if few:
            print(f"* fewer than {ENOUGH_DECODED} tokens, which say little; entmtp-local bench measures more.")
    print(f"profile: {visible(str(out))}")


def _head(head: DraftHead) -> Iterator[str]:
    """What drafts are read from, and what else was compared."""
    yield f"drafts read {head.rows}; what else was compared, tokens/s of chains over that, by forecast:"
    best = head.speeds[head.kind][str(head.size)]
    for kind, speeds in head.speeds.items():
        found = ", ".join(
            f"{int(size):,}: {speed / best:.3f}" if int(size) else f"{speed / best:.3f}" for size, speed in speeds.items()
        )
        yield f"  {'as in the file' if kind == SAME else kind:14s} {found}"


def _advice(found: list[Advice], default: str, command: list[str]) -> Iterator[str]:
    """What to draft for each task, and the command that does it."""
    decoded = [each.measured for each in found]
    yield "what pays: " + ("decoded with the model" if any(decoded) else "forecast from the log")
    for each in found:
        if each.policy == "off":
            line = f"nothing: no drafts gain {100 * (LEAST_GAIN - 1):.0f} % or more"
        else:
            line = f"{each.policy}, {each.ratio:.2f} times plain decoding"
        if each.default_ratio is not None and each.policy != default:
            line += f" (the default, {default}: {each.default_ratio:.2f})"
        if any(decoded) and not each.measured:
            line += "; forecast from the log"
        elif each.n_tokens is not None and each.n_tokens < ENOUGH_DECODED:
            line += f"; by {each.n_tokens} tokens, which say little"
        yield f"  {each.task:8s} {line}"
    policies = {each.policy for each in found}
    mixed = len(policies) > 1
    # of texts of all kinds, unless plain decoding is the better one on the whole
    gains = math.prod(1.0 if each.default_ratio is None else each.default_ratio for each in found) >= 1
    policy = policies.pop() if not mixed else default if gains else "off"
    words = command if policy == default else [*command, "--policy", policy]
    yield f"use it: {shlex.join(words)}"
    if mixed:
        yield "        and for texts of one kind --policy as above"


def _command(model: str | None, options: dict[str, Any]) -> list[str]:
    """The command that finds the profile that was written: what it holds for has to be the same."""
    vocab = options["draft_vocab"]
    given = {
        "--mtp-model": options["mtp_model"],
        "--threads": options["n_threads"],
        "--gpu-layers": options["n_gpu_layers"],
        "--draft-vocab": "full" if vocab == 0 else vocab,
        "--draft-head-type": options["draft_head_type"],
        "--profile": options["out"],
    }
    words = ["entmtp-local", "chat", *([model] if model else [])]
    return [*words, *(str(word) for name, value in given.items() if value is not None for word in (name, value))]


# -- replay


def _replay(options: dict[str, Any]) -> None:
    if options["report"] is not None:
        _check_writable([options["report"]], [options["replayed"], Path(options["costs"] or options["replayed"])])
    log = WideLog.load(options["replayed"])
    costs = load_table(options["costs"]) if options["costs"] else _only_costs()
    names = options["policies"].split(",") if options["policies"] else list(REPLAYED)
    for name in names:
        parse_policy(name.replace("TASK", ALL))
    profile = Profile(costs, tasks=fit_tasks(log, costs))
    rows = []
    if not profile.tasks:
        raise UsageError(f"{options['replayed']} holds no text of more than one token; log more with entmtp-local calibrate.")
    for task in profile.tasks:
        if task == ALL:
            continue
        rows += _replayed_task(log.of_task(task), task, names, profile)
    if options["report"] is not None:
        _write_report(options["report"], profile, log, costs_of=options["costs"])
    if options["as_json"]:
        print(json.dumps({"log": str(options["replayed"]), "costs": costs.as_json(), "rows": rows}))
        return
    print(f"costs: {visible(costs.source)}. Forecasts from a log, on which trees and thresholds were fitted too; not measured.")
    for row in rows:
        name = f"{visible(row['task']):8s} {visible(row['policy']):28s}"
        print(f"  {name} {row['ratio']:.3f}  {row['tokens_per_second']:8.1f} tokens/s  {row['about']}")


def _only_costs() -> CostTable:
    raise UsageError(f"--replay needs --costs: a profile, or one of {', '.join(shipped_tables())}.")


def _replayed_task(log: WideLog, task: str, names: list[str], profile: Profile) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    costs = profile.costs

    def add(policy: str, speed: float, about: str, **more: Any) -> None:
        rows.append({"task": task, "policy": policy, "tokens_per_second": speed, "about": about, **more})

    for name in names:
        try:
            found = replay(log, parse_policy(name.replace("TASK", task)), profile)
        except ProfileError:
            known = ", ".join(each for each in profile.tasks if each != ALL)
            named = name.replace("TASK", task)
            raise UsageError(f"the log has no texts for {named} (it has: {known}); name one of them.") from None
        uncovered = f", {found.n_uncovered} nodes beyond the log" if found.n_uncovered else ""
        add(name.replace("TASK", task), found.tokens_per_second, f"{found.tokens_per_step:.2f} tokens a step{uncovered}")
    plain = replay(log, parse_policy("off"), profile).tokens_per_second
    speed, shape = best_static(log, costs)
    add("best static tree", speed, _described(shape), parents=list(shape.parents), ranks=list(shape.ranks))
    add("oracle (same information)", same_information(log, costs), "throughput, fitted on this log")
    add("oracle (all-seeing)", all_seeing(log, costs), "knows what the target will say")
    for row in rows:
        row["ratio"] = row["tokens_per_second"] / plain if plain else 0.0
    return rows


def _described(shape: TreeShape) -> str:
    if shape.is_chain:
        return f"a chain of {shape.max_depth}"
    return f"{shape.n_nodes - 1} nodes: " + " ".join("".join(map(str, path)) for path in paths_of(shape)[1:])
