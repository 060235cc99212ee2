"""Calibration: measures what passes cost, logs texts of every task, fits, and checks the choices by real decoding.

Interrupted at any time it leaves what it logged so far, and goes on from there when it is started again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

from entmtp_local.calibration.costs import measure_costs, with_drafts
from entmtp_local.calibration.fit import fit_tasks
from entmtp_local.calibration.head import choose_head
from entmtp_local.calibration.record import DEPTH, record, wide_shape
from entmtp_local.calibration.replay import replay
from entmtp_local.calibration.wide_log import WideLog
from entmtp_local.engine import generate
from entmtp_local.errors import UsageError
from entmtp_local.native.cores import physical_cores
from entmtp_local.native.session import Session, SessionOptions
from entmtp_local.native.timing import pass_seconds
from entmtp_local.speculative.cost import SIZES, CostTable, mean_of
from entmtp_local.speculative.draft_vocab import DRAFT_HEAD_TYPES, SAME
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import Key, Profile, parse_measured
from entmtp_local.speculative.sampling import SamplingOptions
from entmtp_local.speculative.tree import TreeShape

#: Sizes that full calibration measures beyond those that are used: static trees may be as large.
LARGE_SIZES = (24, 32)
_FINGERPRINT_BYTES = 1 << 20
_FIRST_SEED = 1000  # of what finalists decode; those of the log are below
_MEASURED = "measured"  # what an interrupted calibration keeps beside its texts

Stop = Callable[[], bool]
Say = Callable[[float, str], None]  # share of the work that is done, what is being done
Prompts = Mapping[str, Sequence[list[int]]]  # token ids of the prompts of each task


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Args:
        quick: what a first use runs.
        n_prompts: of each task.
        n_tokens: of each text, at most.
        n_nodes: of the tree that is logged.
        cost_seconds: that measuring verifications may take, roughly, and drafts, and what a step takes beside them.
        timing_seconds: that verifications are measured for at least, once more behind the long context, and drafts, where that is
            less than `cost_seconds`. Quick calibration does so once; otherwise it is done again behind the texts: a machine is
            faster or slower for seconds, and by not the same for all sizes.
        log_seconds: that logging may take; texts get shorter where it would take more.
        n_long: tokens of the long context that costs are measured behind; 0 leaves it out.
        head_seconds: that comparing rows to draft from may take for each of their types; 0 does not compare.
        n_checked: prompts of each task that the finalists decode.
        check_seconds: that they go on for with each task, again and again where that is done sooner.
    """

    quick: bool
    n_prompts: int
    n_tokens: int
    n_nodes: int
    cost_seconds: float
    timing_seconds: float
    log_seconds: float
    n_long: int
    head_seconds: float
    n_checked: int
    check_seconds: float


QUICK = Effort(
    True,
    n_prompts=2,
    n_tokens=64,
    n_nodes=48,
    cost_seconds=4.0,
    timing_seconds=2.0,
    log_seconds=8.0,
    n_long=0,
    head_seconds=0.0,
    n_checked=0,
    check_seconds=0.0,
)
FULL = Effort(
    False,
    n_prompts=12,
    n_tokens=192,
    n_nodes=96,
    cost_seconds=20.0,
    timing_seconds=12.0,
    log_seconds=math.inf,
    n_long=1024,
    head_seconds=20.0,
    n_checked=3,
    check_seconds=30.0,
)


class Interrupted(Exception):
    """Calibration was asked to stop; what was logged is kept."""


def fingerprint(path: Path) -> str:
    """Of a model file: its size, its beginning, which holds all metadata that matter, and its end."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for at in (0, size // 2, max(0, size - _FINGERPRINT_BYTES)):
            file.seek(at)
            digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()


def key_of(session: Session, options: SessionOptions) -> Key:
    """What a profile of the opened model holds for."""
    return key_for(options, session.engine_info, session.device)


def key_for(options: SessionOptions, engine: Mapping[str, str], device: str) -> Key:
    """What a profile holds for that is measured with these options, by an engine on a device."""
    # where the build is not recorded, the libraries tell it from others
    known = ("libraries_sha256",) if "libraries_sha256" in engine else ("source_sha256", "patches_sha256")
    return Key(
        model=fingerprint(options.model_path),
        mtp_model=fingerprint(options.mtp_path) if options.mtp_path else None,
        engine=" ".join((*(engine[name][:16] for name in known), engine["backend"])),
        device=device,
        n_threads=options.n_threads or physical_cores(),
        n_gpu_layers=options.n_gpu_layers,
        draft_vocab=options.draft_vocab,
        draft_head_type=options.draft_head_type,
    )


def profile_path(folder: Path, model: Path, key: Key) -> Path:
    """Where the profile of a model is kept: another device or build has another file."""
    digest = hashlib.sha256(repr(key).encode()).hexdigest()
    return folder / f"{model.stem}-{digest[:12]}.json"


def partial_path(folder: Path, model: Path, key: Key, prompts: Prompts, sampling: SamplingOptions, effort: Effort) -> Path:
    """Where a calibration keeps its texts until it is done: one of other prompts or settings has another file."""
    settings = (key, sorted(prompts.items()), sampling.temp, effort.n_tokens, effort.n_nodes)
    return folder / f"{model.stem}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:12]}.partial.npz"


def calibrate(
    session: Session,
    key: Key,
    prompts: Prompts,
    sampling: SamplingOptions,
    effort: Effort,
    say: Say,
    stop: Stop,
    partial: Path | None = None,
) -> tuple[Profile, WideLog]:
    """Calibrate a model.

    Args:
        session: opened for trees of the sizes to measure, and for DEPTH levels.
        key: what the profile will hold for.
        sampling: of the texts; each has a seed of its own.
        partial: where logged texts are kept until all is done, and read from where they are there already.
    Returns: the profile and the log that it rests on.
    Raises: Interrupted when `stop` says so.
    """
    for task, some in prompts.items():
        longest = max(map(len, some), default=0)
        if longest >= session.n_ctx:
            raise UsageError(
                f"a prompt of task {task} has {longest} tokens, which a context of {session.n_ctx} has no room for; "
                "give a larger -c."
            )
    say(0.0, "costs of passes")
    sizes = SIZES if effort.quick else (*SIZES, *LARGE_SIZES)
    costs = measure_costs(session, sizes, effort.cost_seconds, effort.n_long, stop, effort.timing_seconds)
    _check(stop)
    log = _record(session, key, prompts, sampling, effort, costs, say, stop, partial)
    if not effort.quick:
        say(0.9, "costs of passes once more")
        again = measure_costs(session, sizes, effort.cost_seconds, effort.n_long, stop, effort.timing_seconds)
        _check(stop)
        costs = mean_of(costs, again)
    say(0.9 if effort.n_checked else 0.95, "fitting")
    costs = _with_step(session, costs, prompts, sampling, effort.cost_seconds, stop)
    _check(stop)
    head = None
    if effort.head_seconds:
        head = choose_head(session, log, prompts, costs, _kinds(session, key), effort.head_seconds, stop)
        _check(stop)
    if head is not None:
        costs = with_drafts(costs, session, effort.cost_seconds, stop, effort.timing_seconds)
        _check(stop)
    tasks = fit_tasks(log, costs)
    profile = Profile(costs, key, tasks, effort.quick, datetime.now(timezone.utc).isoformat(timespec="seconds"), head=head)
    if effort.n_checked:
        profile = replace(profile, measured=_measured(session, profile, log, prompts, sampling, effort, say, stop, partial))
    log.about.pop(_MEASURED, None)
    if partial is not None:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    say(1.0, "done")
    return profile, log


def _kinds(session: Session, key: Key) -> list[str]:
    """Types of rows to compare, the one in use first."""
    used = session.draft_head_type or SAME
    return list(dict.fromkeys((used, SAME, *DRAFT_HEAD_TYPES))) if key.draft_head_type is None else [used]


def _check(stop: Stop) -> None:
    if stop():
        raise Interrupted


def _record(
    session: Session,
    key: Key,
    prompts: Prompts,
    sampling: SamplingOptions,
    effort: Effort,
    costs: CostTable,
    say: Say,
    stop: Stop,
    partial: Path | None,
) -> WideLog:
    depth = min(DEPTH, session.limits.max_depth)
    shape = wide_shape(depth, effort.n_nodes) if session.drafts_trees else TreeShape.chain(depth)
    n_texts = sum(map(len, prompts.values()))
    n_tokens = effort.n_tokens
    if math.isfinite(effort.log_seconds) and n_texts:
        with session.steady_draft_vocab():
            position = costs.verify_seconds(1) + pass_seconds(session, (), [shape], stop=stop)[1][0]
        _check(stop)
        n_tokens = min(n_tokens, int(effort.log_seconds / (position * n_texts)))
    about = {
        "model": key.model,
        "draft_vocab": key.draft_vocab,
        "draft_head_type": key.draft_head_type,
        "temp": sampling.temp,
        "n_tokens": n_tokens,
        "loops": False,
        "tasks": {task: len(some) for task, some in prompts.items()},
        "prompts": hashlib.sha256(repr(sorted(prompts.items())).encode()).hexdigest(),
    }
    log = WideLog(shape, about)
    if n_tokens < 2 or not n_texts:
        # on such a machine even a few texts would take minutes, or there is no room for any
        return log
    if partial is not None:
        log = _resumed(partial, log)
        n_tokens = log.about["n_tokens"]
        if not log.texts:
            # what cannot be gone on with is of no use
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    n_done = {task: len(log.of_task(task).texts) for task in prompts}
    saved = perf_counter()
    try:
        for task, some in prompts.items():
            for i, ids in enumerate(some):
                if i < n_done[task]:
                    continue
                say(0.1 + 0.8 * len(log.texts) / n_texts, f"{task}: text {i + 1} of {len(some)}")
                session.clear()
                # nothing of what is logged is verified: the choice of rows would take all drafts for misses
                with session.steady_draft_vocab(), session.new_sampler(replace(sampling, seed=i)) as sampler:
                    text = record(session, ids, sampler, n_tokens, shape, task=task, stop=stop)
                if text is not None:
                    log.texts.append(text)
                _check(stop)
                if perf_counter() - saved > 10:
                    _keep(log, partial)
                    saved = perf_counter()
    finally:
        # complete or not, what follows can be interrupted too
        _keep(log, partial)
    return log


def _keep(log: WideLog, partial: Path | None) -> None:
    # a folder that cannot be written to costs an interrupted run its beginning, nothing else
    if partial is not None and log.texts:
        with suppress(OSError):
            log.save(partial)


def _resumed(path: Path, fresh: WideLog) -> WideLog:
    """The log of an interrupted run, where it is of the same model and the same prompts."""
    try:
        found = WideLog.load(path)
    except UsageError:
        return fresh
    # how many tokens there is time for differs from run to run; texts of a busy moment may be too short to learn from
    n_tokens = found.about.get("n_tokens")
    if not isinstance(n_tokens, int) or 2 * n_tokens < fresh.about["n_tokens"]:
        return fresh
    about = {name: value for name, value in found.about.items() if name != _MEASURED}
    found.about[_MEASURED] = _kept(found.about.get(_MEASURED))
    same = about == {**fresh.about, "n_tokens": n_tokens} and found.shape.parents == fresh.shape.parents
    return found if same else fresh


def _kept(measured: Any) -> dict[str, dict[str, Any]]:
    """What an interrupted run decoded of each task, where it is that."""
    try:
        found = {task: {**kept, "rows": [parse_measured(row) for row in kept["rows"]]} for task, kept in measured.items()}
        return {task: kept for task, kept in found.items() if any(row["policy"] == "off" for row in kept["rows"])}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return {}


def _with_step(
    session: Session, costs: CostTable, prompts: Prompts, sampling: SamplingOptions, limit: float, stop: Stop
) -> CostTable:
    """The table with what a step takes beside draft and verification: scheduling, rollback and the head's queue.

    Args:
        limit: seconds after which no step is begun.
    """
    ids = next((some[0] for some in prompts.values() if some), None)
    if ids is None:
        return costs
    session.clear()
    with session.new_sampler(replace(sampling, seed=0)) as sampler:
        policy, end = parse_policy("chain:2").within(session.limits), perf_counter() + limit
        generation = generate(
            session, ids, policy=policy, sampler=sampler, max_tokens=24, stop=lambda: stop() or perf_counter() > end
        )
        for _ in generation:
            pass
    session.clear()
    stats = generation.stats
    if not stats.n_steps:
        return costs
    beside = stats.seconds["schedule"] + stats.seconds["commit"]
    return replace(costs, step=beside / stats.n_steps)


def finalists(profile: Profile, log: WideLog, task: str, trees: bool) -> list[str]:
    """Policies worth decoding with, by replay: the best chain, the best grown tree, and the adaptive ones.

    Args:
        trees: whether they can be verified.
    """
    texts = log.of_task(task)

    def best(names: list[str]) -> list[str]:
        speeds = {name: replay(texts, parse_policy(name), profile).tokens_per_second for name in names}
        return sorted(speeds, key=speeds.__getitem__)[-1:]

    chains = [f"chain:{n}" for n in range(1, min(DEPTH, log.shape.max_depth) + 1)]
    # where only chains can be verified, these would be chains too
    grown = [f"hydra:{n}:{task}" for n in (3, 5, 7, 11, 15)] if trees else []
    return ["off", *best(chains), *best(grown), f"entmtp:{task}", f"entropy-chain:{task}", "throughput"]


def _measured(
    session: Session,
    profile: Profile,
    log: WideLog,
    prompts: Prompts,
    sampling: SamplingOptions,
    effort: Effort,
    say: Say,
    stop: Stop,
    partial: Path | None,
) -> tuple[dict[str, Any], ...]:
    """Real decoding with the finalists of each task; what an interrupted run decoded with the same head is kept."""
    done: dict[str, dict[str, Any]] = log.about.setdefault(_MEASURED, {})
    head = None if profile.head is None else [profile.head.kind, profile.head.size]
    tasks = [task for task in prompts if task in profile.tasks]
    for t, task in enumerate(tasks):
        if task in done and done[task].get("head") == head:
            continue

        def tell(share: float, t: int = t, task: str = task) -> None:
            say(0.9 + 0.1 * (t + share) / len(tasks), f"{task}: decoding with the finalists")

        names = finalists(profile, log, task, session.limits.trees)
        rows = _decoded(session, profile, names, task, prompts[task][: effort.n_checked], sampling, effort, tell, stop)
        done[task] = {"head": head, "rows": rows}
        _keep(log, partial)
    return tuple(row for task in tasks for row in done[task]["rows"])


def _decoded(
    session: Session,
    profile: Profile,
    names: Sequence[str],
    task: str,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingOptions,
    effort: Effort,
    tell: Callable[[float], None],
    stop: Stop,
) -> list[dict[str, Any]]:
    """What policies bring that take turns at every prompt, and begin anew with other seeds while there is time."""
    policies = {name: parse_policy(name).within(session.limits) for name in names}
    for policy in policies.values():
        if policy.needs_profile:
            policy.calibrated(profile)
    tokens, taken, seconds, steps = (dict.fromkeys(names, 0.0) for _ in range(4))
    begin, n = perf_counter(), 0
    while n < len(prompts) or (prompts and perf_counter() < begin + effort.check_seconds):
        tell(min(1.0, n / len(prompts), (perf_counter() - begin) / max(1e-9, effort.check_seconds)))
        for name in names if n % 2 == 0 else reversed(names):
            session.clear()
            with session.new_sampler(replace(sampling, seed=_FIRST_SEED + n)) as sampler:
                generation = generate(
                    session,
                    prompts[n % len(prompts)],
                    policy=policies[name],
                    sampler=sampler,
                    max_tokens=effort.n_tokens // 2,
                    stop=stop,
                )
                for _ in generation:
                    pass
            _check(stop)
            stats = generation.stats
            tokens[name] += max(0, stats.n_generated - 1)
            taken[name] += max(0, stats.n_generated + stats.n_ends - 1)
            seconds[name] += stats.seconds["decode"]
            steps[name] += stats.n_steps
        n += 1
    speeds = {name: tokens[name] / seconds[name] if seconds[name] else 0.0 for name in names}
    return [
        {
            "task": task,
            "policy": name,
            "temp": sampling.temp,
            "tokens_per_second": speeds[name],
            "ratio": speeds[name] / speeds["off"] if speeds["off"] else 0.0,
            "tokens_per_step": taken[name] / steps[name] if steps[name] else 0.0,
            "n_tokens": int(tokens[name]),
        }
        for name in names
    ]
