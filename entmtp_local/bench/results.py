"""What follows from the visits of a record: a row per arm, ratios to the best stock setting, verdicts. Draws nothing.

Texts that loop are left out of all speeds and ratios, and have ratios of their own; an arm that wrote what the model does not
write has no speed at all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from entmtp_local.bench.arms import PLAIN, STOCK_PLAIN
from entmtp_local.bench.record import Record
from entmtp_local.bench.rounds import best_overall
from entmtp_local.bench.statistics import Cells, Ratio, combined, geometric_mean, ratio_of
from entmtp_local.bench.truth import NO_TOKEN, verdict

# Another stock arm may be as fast as the base; more is a machine that was not quiet.
_AHEAD_OF_BASE = 1.05

_Text = Mapping[str, Any]
_Grid = dict[tuple[int, int], _Text]  # by round and prompt


def results(record: Record) -> dict[str, Any]:
    """Rows by model, temperature and workload, and what sums them up.

    Returns: {"blocks": [...], "summary": [...], "models": [...]}, as docs/BENCH.md describes them.
    """
    content = record.content
    found: dict[str, Any] = {"blocks": [], "summary": [], "models": []}
    settings = content["settings"]
    for number, model in enumerate(content["models"]):
        invalid = invalid_arms(record, number)
        summaries = []
        for temp in settings["temps"]:
            blocks: list[dict[str, Any]] = []
            ratios: dict[str, dict[str, Ratio]] = {}
            for workload in settings["workloads"]:
                block, kept = _block(record, number, temp, workload, invalid)
                if block["arms"]:
                    blocks.append(block)
                    ratios[workload] = kept
            found["blocks"] += blocks
            if blocks:
                summaries.append(_summary(record, number, temp, blocks, ratios))
        found["summary"] += summaries
        found["models"].append(_of_model(model, number, found["blocks"], summaries))
    return found


def invalid_arms(record: Record, number: int) -> dict[str, str]:
    """Arms of a model whose speed is not to be reported, and why."""
    judged = record.content["judged"]
    arms = dict.fromkeys(visit["arm"] for visit in record.content["visits"] if visit["model"] == number)
    found: dict[str, str] = {}
    for arm in arms:
        failure = record.failure(number, arm)
        texts = [text for visit in record.visits(model=number, arm=arm, temp=0.0) for text in visit["texts"]]
        truth = verdict(texts, judged)
        sampled = record.content["models"][number].get("chi_square", {}).get(arm, {})
        if failure is not None:
            found[arm] = f"it failed: {failure}"
        elif truth["wrong"]:
            first = truth["first_difference"]
            what = (
                f"is {first['token']}, which the model does not have"
                if first["gap"] == NO_TOKEN
                else f"has a logit less by {first['gap']:.3f} than the right one's"
            )
            found[arm] = f"wrong text: token {first['at']} {what} ({truth['wrong']} of {truth['compared']} texts)"
        elif truth["unjudged"]:
            found[arm] = (
                "its text differs from plain decoding's, and whether that is right was not looked at; with --json, --resume does"
            )
        elif sampled.get("same") is False:
            found[arm] = f"wrong distribution: sampled tokens are not those of plain decoding (p = {sampled['p_value']:.1g})"
    return found


# -- one workload at one temperature


def _block(
    record: Record, number: int, temp: float, workload: str, invalid: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Ratio]]:
    about = {"model": number, "temp": temp, "workload": workload}
    visits = [
        visit
        for visit in record.content["visits"]
        if all(visit[name] == value for name, value in about.items())
    ]  # fmt: skip
    arms = list(dict.fromkeys(visit["arm"] for visit in sorted(visits, key=lambda visit: visit["round"])))
    kinds = {visit["arm"]: visit["kind"] for visit in visits}
    good = {arm: [visit for visit in visits if visit["arm"] == arm and "error" not in visit] for arm in arms}
    grids = {
        arm: {(visit["round"], text["prompt"]): text for visit in good[arm] for text in visit["texts"]}
        for arm in arms
        if arm not in invalid
    }
    figures = {arm: _figures(good[arm]) for arm in grids if good[arm]}
    base = _base(figures, kinds, invalid)
    rows: dict[str, Any] = {}
    ratios: dict[str, Ratio] = {}
    for arm in arms:
        texts = [text for visit in good[arm] for text in visit["texts"]]
        row: dict[str, Any] = {"kind": kinds[arm], "invalid": invalid.get(arm), "n_rounds": len(good[arm])}
        row["truth"] = verdict(texts, record.content["judged"])
        row["loops"] = {"n": sum(text["loops"] for text in texts), "of": len(texts)}
        if arm in figures:
            row |= figures[arm]
            if base is not None:
                ratio = ratio_of(_cells(grids[arm], grids[base], lambda text: not text["loops"]))
                looping = ratio_of(_cells(grids[arm], grids[base], lambda text: bool(text["loops"])))
                row["ratio"], row["ratio_of_loops"] = _as_json(ratio), _as_json(looping)
                if ratio is not None:
                    ratios[arm] = ratio
        rows[arm] = row
    ahead = [arm for arm, ratio in ratios.items() if kinds[arm] == "stock" and ratio.value > _AHEAD_OF_BASE]
    if ahead:
        doubt = f"{ahead[0]} was ahead of the base in most rounds, and behind it by its median speed"
        for arm, ratio in ratios.items():
            ratios[arm] = replace(ratio, doubts=(*ratio.doubts, doubt))
            rows[arm]["ratio"] = _as_json(ratios[arm])
    return {**about, "base": base, "arms": rows}, ratios


def _base(figures: Mapping[str, Mapping[str, Any]], kinds: Mapping[str, str], invalid: Mapping[str, str]) -> str | None:
    """What ratios are over: the fastest of stock's arms, or plain decoding where stock was not measured."""
    stock = [arm for arm in figures if kinds[arm] == "stock"]
    if any(kind == "stock" for kind in kinds.values()):
        # if the plain decoding of both differs, it is not known whose is wrong
        if STOCK_PLAIN in invalid or not stock:
            return None
        return max(stock, key=lambda arm: figures[arm]["tokens_per_second"]["median"] or 0.0)
    return PLAIN if PLAIN in figures else None


def _figures(visits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of an arm: medians over its visits, sums over its texts. Speeds are of texts that do not loop."""
    texts = [text for visit in visits for text in visit["texts"]]
    straight = [text for text in texts if not text["loops"]]
    speeds = [_speed([text for text in visit["texts"] if not text["loops"]]) for visit in visits]
    known = [speed for speed in speeds if speed is not None]
    n_steps = sum(text["n_steps"] or 0 for text in straight)
    # a pass that ends the text has brought its last token, which is none of the n
    n_tokens = sum(max(0, text["n"] - 1 + text["ended"]) for text in straight)
    per_depth: list[int] = []
    for text in straight:
        per_depth += [0] * (len(text["accepted_per_depth"]) - len(per_depth))
        for depth, n in enumerate(text["accepted_per_depth"]):
            per_depth[depth] += n
    parts: dict[str, float] = {}
    for text in straight:
        for part, seconds in text["parts"].items():
            parts[part] = parts.get(part, 0.0) + seconds
    prefill = sum(text["prefill_seconds"] for text in texts)
    resident = [visit["resident_bytes"] for visit in visits if visit["resident_bytes"] is not None]
    device = [visit["device_bytes"] for visit in visits if visit["device_bytes"] is not None]
    return {
        "tokens_per_second": {"median": statistics.median(known) if known else None, "all": known},
        "n_tokens": sum(text["n"] for text in texts),
        "tokens_per_step": n_tokens / n_steps if n_steps else None,
        "drafted_per_step": sum(text["n_drafted"] for text in straight) / n_steps if n_steps else None,
        "ms_per_step": {part: 1e3 * seconds / n_steps for part, seconds in parts.items()} if n_steps else {},
        "accepted_per_depth": [n / n_steps for n in per_depth] if n_steps else [],
        "pace": _pace(straight),
        "prefill_tokens_per_second": sum(text["n_prompt"] for text in texts) / prefill if prefill > 0 else None,
        "first_token_seconds": statistics.median(text["prefill_seconds"] for text in texts),
        "resident_bytes": max(resident) if resident else None,
        "device_bytes": max(device) if device else None,
        "load_seconds": statistics.median(visit["load_seconds"] for visit in visits),
    }


def _pace(texts: Iterable[_Text]) -> list[list[float]]:
    """[(tokens of the text so far, tokens per second since the point before)], over all texts that came so far."""
    tokens: dict[int, float] = {}
    seconds: dict[int, float] = {}
    for text in texts:
        last_n, last_seconds = 1, 0.0
        for i, (n, at) in enumerate(text["pace"]):
            tokens[i] = tokens.get(i, 0.0) + n - last_n
            seconds[i] = seconds.get(i, 0.0) + at - last_seconds
            last_n, last_seconds = n, at
    return [[(i + 1) * 32, tokens[i] / seconds[i]] for i in sorted(tokens) if seconds[i] > 0]


def _speed(texts: Iterable[_Text]) -> float | None:
    """Tokens after the first one of each text, over the seconds that they took."""
    some = list(texts)
    seconds = sum(text["decode_seconds"] for text in some)
    tokens = sum(max(0, text["n"] - 1) for text in some)
    return float(tokens / seconds) if seconds > 0 and tokens else None


def _cells(one: _Grid, base: _Grid, wanted: Callable[[_Text], bool]) -> Cells:
    """Texts of both arms that are wanted, where both are there."""
    shared = [key for key in one if key in base]
    rounds, prompts = sorted({key[0] for key in shared}), sorted({key[1] for key in shared})
    shape = (len(rounds), len(prompts))
    cells = Cells(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape))
    for key in shared:
        a, b = one[key], base[key]
        if wanted(a) and wanted(b) and min(a["n"], b["n"]) > 1:
            at = rounds.index(key[0]), prompts.index(key[1])
            cells.tokens[at], cells.seconds[at] = a["n"] - 1, a["decode_seconds"]
            cells.base_tokens[at], cells.base_seconds[at] = b["n"] - 1, b["decode_seconds"]
    return cells


def _as_json(ratio: Ratio | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    known = ratio.low == ratio.low
    return {
        "value": ratio.value,
        "low": ratio.low if known else None,
        "high": ratio.high if known else None,
        "pairs": list(ratio.pairs),
        "wins": ratio.wins,
        "p_value": ratio.p_value,
        "spread": ratio.spread,
        "doubts": list(ratio.doubts),
    }


# -- all workloads together


def _summary(
    record: Record, number: int, temp: float, blocks: Sequence[Mapping[str, Any]], ratios: Mapping[str, Mapping[str, Ratio]]
) -> dict[str, Any]:
    """Geometric means over the workloads, of arms that were measured on all of them."""
    everywhere = [arm for arm in blocks[0]["arms"] if all(arm in block["arms"] for block in blocks)]
    arms: dict[str, Any] = {}
    for arm in everywhere:
        speeds = [block["arms"][arm].get("tokens_per_second", {}).get("median") for block in blocks]
        some = [ratios[block["workload"]].get(arm) for block in blocks]
        there = [ratio for ratio in some if ratio is not None]
        arms[arm] = {
            "kind": blocks[0]["arms"][arm]["kind"],
            "invalid": blocks[0]["arms"][arm]["invalid"],
            "tokens_per_second": geometric_mean([s for s in speeds if s]) if all(speeds) else None,
            "ratio": _as_json(combined(there)) if there and len(there) == len(some) else None,
            "worst": min((ratio.value for ratio in there), default=None),
        }
    stock = {arm: row["tokens_per_second"] for arm, row in arms.items() if row["kind"] == "stock" and row["tokens_per_second"]}
    one = max(stock, key=lambda arm: stock[arm]) if stock else None
    overall = best_overall(record.content["models"][number].get("sweep", []), temp)
    return {
        "model": number,
        "temp": temp,
        "workloads": [block["workload"] for block in blocks],
        "arms": arms,
        # one setting for everything is what most users have
        "best_single_stock": None if one is None else {"arm": one, "tokens_per_second": stock[one]},
        "best_swept_setting": overall.name if overall else None,
    }


def _of_model(
    model: Mapping[str, Any], number: int, blocks: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A line of the table of models: how well its head drafts, and what is fastest."""
    depths: dict[str, list[list[float]]] = {}
    for block in blocks:
        if block["model"] == number:
            for arm, row in block["arms"].items():
                if row.get("accepted_per_depth"):
                    depths.setdefault(arm, []).append(row["accepted_per_depth"])
    # chains say most simply how far a head can be trusted
    chains = [arm for arm in depths if arm.startswith("chain:")]
    measured_by = max(chains or depths, key=lambda arm: (len(depths[arm]), max(map(len, depths[arm]))), default=None)
    acceptance: list[float] = []
    if measured_by is not None:
        rows = depths[measured_by]
        acceptance = [sum(row[d] for row in rows if len(row) > d) / len(rows) for d in range(max(map(len, rows)))]
    fastest = []
    for summary in summaries:
        speeds = {arm: row["tokens_per_second"] for arm, row in summary["arms"].items() if row["tokens_per_second"]}
        if speeds:
            best = max(speeds, key=lambda arm: speeds[arm])
            fastest.append({"temp": summary["temp"], "arm": best, "tokens_per_second": speeds[best]})
    return {
        "model": number,
        "label": model["label"],
        "size_bytes": model["size_bytes"],
        "quantisation": model["quantisation"],
        "acceptance": acceptance,
        "acceptance_of": measured_by,
        "fastest": fastest,
    }
