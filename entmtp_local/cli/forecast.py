"""What `info` says of this machine: whether a model fits its memory, and how fast it will be."""

from __future__ import annotations

import statistics
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from entmtp_local.calibration.calibrate import key_for, profile_path
from entmtp_local.cli.machine import (
    MAX_THREADS,
    available_memory,
    gpu_layers_that_fit,
    largest_context,
    memory_needed,
    readable_size,
)
from entmtp_local.cli.profiles import profile_folder
from entmtp_local.errors import EngineError, ProfileError
from entmtp_local.native import library
from entmtp_local.native.model_file import ModelInfo
from entmtp_local.native.session import SessionOptions
from entmtp_local.native.source import find_layout
from entmtp_local.speculative.expected import expected_speeds, plain_speed
from entmtp_local.speculative.profile import ENOUGH_DECODED, Profile
from entmtp_local.speculative.protocol import Policy
from entmtp_local.speculative.static import OFF

_FASTER = 1.05  # times a policy's speed: what is so much faster is named beside it


def fit_of(info: ModelInfo, sidecar: ModelInfo | None, n_ctx: int, policy: Policy, n_gpu_layers: int | None) -> dict[str, Any]:
    """Whether a model fits, and what would.

    Args:
        n_gpu_layers: 0 for main memory; None or more for the GPUs, where the engine sees any.
    Returns: "device", "n_gpus", "available_bytes" and "total_bytes" (None where unknown), "fits" (None where unknown),
        "largest_n_ctx" (up to what the model was trained for, or n_ctx; None where it does not fit at all or where a part is
        meant), and "gpu_layers" (of a GPU that does not hold all, or is not to, how many it could).
    """

    def needed(n_tokens: int) -> int:
        return memory_needed(info, sidecar, n_tokens, policy)

    gpus = [] if n_gpu_layers == 0 else _gpus()
    device, available, total = "main memory", available_memory(), None
    if gpus:
        device = gpus[0].name if len(gpus) == 1 else f"{len(gpus)} GPUs"
        available, total = (sum(getattr(gpu, name) for gpu in gpus) for name in ("free_bytes", "total_bytes"))
    told: dict[str, Any] = {"device": device, "n_gpus": len(gpus), "available_bytes": available, "total_bytes": total}
    if available is None:
        return {**told, "fits": None, "largest_n_ctx": None, "gpu_layers": None}
    layers = gpu_layers_that_fit(info, sidecar, n_ctx, policy, available) if gpus else None
    if layers is not None and n_gpu_layers is not None and n_gpu_layers <= info.n_layer:
        return {**told, "fits": n_gpu_layers <= layers, "largest_n_ctx": None, "gpu_layers": layers}
    fits = needed(n_ctx) <= available
    largest = largest_context(needed, available)
    if largest is not None and info.n_ctx_train:
        largest = min(largest, max(n_ctx, info.n_ctx_train))
    return {**told, "fits": fits, "largest_n_ctx": largest, "gpu_layers": None if fits else layers}


def speed_of(options: SessionOptions, policy: Policy, given: Path | None, drafting: str, model: str) -> dict[str, Any]:
    """What a kept profile lets expect of a policy.

    Args:
        given: a profile that the user named.
        drafting: "trees", "chains" or "off".
        model: as on the command line, "" for the shipped one.
    Returns: "plain", "tasks" and what the profile is, or "reason" where no profile tells.
    """
    if drafting == "off":
        return {
            "reason": f"unknown: calibration measures drafts; entmtp-local run {model} -p TEXT --verbose tells".replace("  ", " ")
        }
    if not _is_engine_built():
        return {"reason": f"unknown until the engine is built; run {find_layout().rerun}"}
    key = key_for(options, library.engine_info(), library.device_name())
    path = given or profile_path(profile_folder(), options.model_path, key)
    if given is None and not path.is_file():
        does_it = f"entmtp-local calibrate {model}".rstrip() + " does it, and the first chat in short"
        others = [
            str(n)
            for n in range(1, MAX_THREADS + 1)
            if profile_path(profile_folder(), options.model_path, replace(key, n_threads=n)).is_file()
        ]
        if others:
            does_it = f"with {key.n_threads} threads: {does_it}; there is a profile for --threads {' and '.join(others)}"
            return {"reason": f"not measured yet {does_it}"}
        return {"reason": f"not measured yet: {does_it}"}
    try:
        profile = Profile.load(path, key)
        if policy.needs_profile:
            policy.calibrated(profile)
    except ProfileError as error:
        return {"reason": str(error).removesuffix(".")}
    rows = (row for task in profile.tasks for row in profile.reliable_of(task) if row["policy"] == OFF.name)
    plain = [row["tokens_per_second"] for row in rows if row["tokens_per_second"] > 0]
    tasks = [asdict(each) for each in expected_speeds(profile, policy, trees=drafting == "trees")]
    return {
        "plain": statistics.mean(plain) if plain else plain_speed(profile),
        "tasks": tasks,
        "doubtful": [task for task in profile.tasks if profile.measured_of(task) and not profile.reliable_of(task)],
        "quick": profile.quick,
        "created": profile.created,
        "profile": str(path),
        "again": f"entmtp-local calibrate {model}".rstrip(),
    }


def fit_text(fit: dict[str, Any], n_ctx: int, n_ctx_train: int) -> str:
    """`fit_of` in words."""
    if fit["fits"] is None:
        return f"unknown: the system does not tell how much of {fit['device']} is available"
    room = f"{readable_size(fit['available_bytes'])} of {fit['device']} are available"
    if fit["fits"] and fit["gpu_layers"] is not None:
        return f"yes: {room}, which is enough for up to --gpu-layers {fit['gpu_layers']}"
    if fit["fits"]:
        all_of_it = fit["largest_n_ctx"] == n_ctx_train
        enough = f"for all {n_ctx_train} tokens that it was trained for" if all_of_it else f"up to -c {fit['largest_n_ctx']}"
        return f"yes: {room}, which is enough {enough}"
    if fit["gpu_layers"]:
        return f"in part: {room}; --gpu-layers {fit['gpu_layers']} leaves the rest in main memory, which is slow"
    if fit["largest_n_ctx"]:
        return f"not at -c {n_ctx}: {room}, which is enough up to -c {fit['largest_n_ctx']}"
    return f"no: {room}; use a smaller quantisation: entmtp-local pull --list OWNER/NAME shows what there is"


def speed_text(speed: dict[str, Any]) -> list[str]:
    """`speed_of` in words, a line each."""
    if "reason" in speed:
        return [str(speed["reason"])]
    lines = [f"{speed['plain']:.1f} tokens/s decoded one by one"]
    for row in speed["tasks"]:
        how = "measured" if row["measured"] else "forecast by the cost model"
        if row["n_tokens"] is not None and row["n_tokens"] < ENOUGH_DECODED:
            how += f" over few tokens, {row['n_tokens']}"
        faster = row["best_ratio"] > _FASTER * row["ratio"]
        best = f"; {row['best']}: {row['best_ratio']:.2f}" if faster else ""
        lines.append(
            f"{row['tokens_per_second']:.1f} tokens/s for {row['task']}, {row['ratio']:.2f} times plain decoding "
            f"({how}: {row['by']}{best})"
        )
    if speed["doubtful"]:
        lines.append(
            f"what was measured of {', '.join(speed['doubtful'])} is not used: drafts gained more than their tokens allow, so "
            "something else ran beside plain decoding"
        )
    how = "quick calibration" if speed["quick"] else "calibration"
    when = _when(speed["created"], datetime.now(timezone.utc))
    return [*lines, f"from a {how}{when}; {speed['again']} {'measures more' if speed['quick'] else 'measures again'}"]


def _when(created: str, now: datetime) -> str:
    """A profile's date and age; "" where it has none that could be read."""
    try:
        made = datetime.fromisoformat(created)
    except ValueError:
        return ""
    days = (now.date() - made.date()).days
    age = {0: "today", 1: "yesterday"}.get(days, f"{days} days ago")
    return f" of {made.date()}" + (f", {age}" if days >= 0 else "")


def _gpus() -> list[library.Gpu]:
    return library.gpus() if _is_engine_built() else []


def _is_engine_built() -> bool:
    try:
        return library.is_built() and library.load() is not None
    except EngineError:
        return False
