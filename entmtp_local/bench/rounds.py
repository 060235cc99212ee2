"""Rounds: every arm visits every workload once a round, in an order that turns around from round to round (ABBA).

Each visit starts its arm anew, lets it answer a prompt that does not count, and ends it: arms share neither memory nor what they
learnt, and none has seen a prompt before. Drift of the machine hits all of them alike.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

from entmtp_local.bench.arms import STOCK_PLAIN, Arm, Runner, StockSetting
from entmtp_local.bench.memory import device_bytes, resident_bytes
from entmtp_local.bench.record import Record
from entmtp_local.bench.statistics import geometric_mean, same_distribution
from entmtp_local.bench.text import Request, Text
from entmtp_local.bench.truth import MIN_P, NO_TOKEN, Difference, Judgement, checked, ending
from entmtp_local.bench.worker import END, Gap
from entmtp_local.errors import EntMTPError, ServerError
from entmtp_local.speculative.sampling import SamplingOptions

# Seeds of two rounds never meet: a workload has fewer prompts.
_SEEDS_A_ROUND = 1000
# Tokens of each text that is drawn for the test of distributions, texts to choose one of them by, and how often is often.
_N_DRAWN = 6
_N_PILOT = 40
_OFTEN = 3

Say = Callable[[int, int, str], None]  # visits done, visits in all, what comes next
Complete = Callable[[Request], Text]


class Judge(Protocol):
    """Plain decoding that can be asked for rows."""

    def complete(self, request: Request) -> Text: ...

    def gap(self, text: Sequence[int], one: int, other: int) -> Gap: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Args:
        temps: temperatures.
        workloads: names.
        n_tokens: of each answer, at most.
        n_rounds: visits of each arm to each workload at each temperature.
        n_warmup: tokens of the answer that does not count.
        cool_down: seconds of rest before each visit.
        sampling: but for temperature and seed.
    """

    temps: tuple[float, ...]
    workloads: tuple[str, ...]
    n_tokens: int
    n_rounds: int
    n_warmup: int
    cool_down: float
    sampling: SamplingOptions

    def request(self, prompt: Sequence[int], temp: float, seed: int, n: int) -> Request:
        return Request(tuple(prompt), n, replace(self.sampling, temp=temp, seed=seed))


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and its arms.

    Args:
        number: in the record's list of models.
        label: what tables call it.
        prompts: token ids by workload.
        warmup: of each workload, a prompt that does not count.
        arms: for a temperature and a workload.
        judge: opens plain decoding.
    """

    number: int
    label: str
    prompts: Mapping[str, Sequence[Sequence[int]]]
    warmup: Mapping[str, Sequence[int]]
    arms: Callable[[float, str], Sequence[Arm]]
    judge: Callable[[], AbstractContextManager[Judge]]


def plain_texts(record: Record, subject: Subject, plan: Plan) -> None:
    """Decode what all texts at temperature 0 are compared with, where the record does not have it yet."""
    model = record.content["models"][subject.number]
    if "plain" in model or 0.0 not in plan.temps:
        return
    found: dict[str, list[list[int]]] = {}
    with subject.judge() as judge:
        for workload in plan.workloads:
            requests = [plan.request(ids, 0.0, 0, plan.n_tokens) for ids in subject.prompts[workload]]
            found[workload] = [ending(judge.complete(request)) for request in requests]
    model["plain"] = found
    record.save()


def try_out(subject: Subject, plan: Plan, say: Say) -> None:
    """Let each server say something, before time is spent on anything else.

    Raises: ServerError where one does not run.
    """
    temp, workload = plan.temps[0], plan.workloads[0]
    # of stock, plain decoding has to run; that its MTP does not run with a model is a result
    tried = [arm for arm in subject.arms(temp, workload) if arm.name == STOCK_PLAIN or arm.kind == "peer"]
    for done, arm in enumerate(tried):
        say(done, len(tried), f"trying {arm.name} with {subject.label}")
        with arm.open() as runner:
            runner.complete(plan.request(subject.warmup[workload], temp, 0, 2))


# -- the rounds


@dataclass(frozen=True, slots=True)
class Visit:
    """Where an arm is to go."""

    round: int
    temp: float
    workload: str
    subject: Subject
    arm: Arm

    @property
    def about(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "model": self.subject.number,
            "temp": self.temp,
            "workload": self.workload,
            "arm": self.arm.name,
        }


def visits(plan: Plan, subjects: Sequence[Subject]) -> Iterator[Visit]:
    """All visits in their order; within a workload the arms of all models take turns."""
    for number in range(plan.n_rounds):
        for temp in plan.temps:
            for workload in plan.workloads:
                block = [(subject, arm) for subject in subjects for arm in subject.arms(temp, workload)]
                for subject, arm in block if number % 2 == 0 else reversed(block):
                    yield Visit(number, temp, workload, subject, arm)


def measure(
    record: Record, plan: Plan, subjects: Sequence[Subject], say: Say, rest: Callable[[float], None] = time.sleep
) -> None:
    """Go through all rounds; visits that the record has are not repeated, an arm that failed is not visited again."""
    for subject in subjects:
        for before in record.visits(model=subject.number):
            # an interruption may have come between a visit and what its texts were worth
            _judge(record, subject, before)
    every = list(visits(plan, subjects))
    for done, visit in enumerate(every):
        number, arm = visit.subject.number, visit.arm
        if record.has(**visit.about) or record.failure(number, arm.name) is not None or _is_wrong(record, number, arm.name):
            continue
        say(done, len(every), f"round {visit.round + 1}: {visit.subject.label}, {visit.workload}, {arm.name}")
        if plan.cool_down:
            rest(plan.cool_down)
        try:
            found = _visit(record, plan, visit)
        except EntMTPError as error:
            found = {"error": str(error)}
        made = {**visit.about, "kind": arm.kind, **found}
        record.add(made)
        _judge(record, visit.subject, made)
    say(len(every), len(every), "done")


def _visit(record: Record, plan: Plan, visit: Visit) -> dict[str, Any]:
    subject, workload = visit.subject, visit.workload
    plain = record.content["models"][subject.number].get("plain") if visit.temp == 0 else None
    begin = time.perf_counter()
    with visit.arm.open() as runner:
        loaded = time.perf_counter()
        runner.complete(plan.request(subject.warmup[workload], visit.temp, 0, plan.n_warmup))
        texts = []
        for i, ids in enumerate(subject.prompts[workload]):
            seed = 1 + i + _SEEDS_A_ROUND * visit.round
            text = runner.complete(plan.request(ids, visit.temp, seed, plan.n_tokens))
            truth = checked(plain[workload][i] if plain else None, text)
            if truth.get("difference"):
                truth["key"] = _key(visit, i, truth["difference"])
            texts.append({"prompt": i, **text.figures(), **truth})
        memory = {"resident_bytes": resident_bytes(runner.pid), "device_bytes": device_bytes(runner.pid)}
    return {"load_seconds": loaded - begin, "seconds": time.perf_counter() - begin, **memory, "texts": texts}


def _key(visit: Visit, prompt: int, difference: Mapping[str, int]) -> str:
    return f"{visit.subject.number}/{visit.workload}/{prompt}/{difference['at']}/{difference['token']}"


def _judge(record: Record, subject: Subject, visit: Mapping[str, Any]) -> None:
    """Look at the rows of differences that are new. Where that fails they stay unjudged, and their arm has no figures."""
    judged = record.content["judged"]
    new = [text for text in visit.get("texts", ()) if text.get("key") and text["key"] not in judged]
    if not new:
        return
    model, workload = record.content["models"][subject.number], visit["workload"]
    plain = model["plain"][workload]
    with suppress(EntMTPError), subject.judge() as judge:
        for text in new:
            difference = Difference(**text["difference"])
            if difference.token != END and not 0 <= difference.token < model["n_vocab"]:
                judged[text["key"]] = {"gap": NO_TOKEN, "tolerance": 0.0}
                continue
            right = plain[text["prompt"]]
            one = right[difference.at] if difference.at < len(right) else END
            before = [*subject.prompts[workload][text["prompt"]], *right[: difference.at]]
            found = Judgement.of(judge.gap(before, one, difference.token), foreign=visit["kind"] == "peer")
            judged[text["key"]] = {"gap": found.gap, "tolerance": found.tolerance}
    record.save()


def _is_wrong(record: Record, model: int, arm: str) -> bool:
    """Whether an arm has written what the model does not write."""
    judged = record.content["judged"]
    found = (judged.get(text.get("key")) for visit in record.visits(model=model, arm=arm) for text in visit["texts"])
    return any(each is not None and each["gap"] > each["tolerance"] for each in found)


# -- the best setting of stock llama.cpp


def look_for_settings(
    record: Record,
    plan: Plan,
    subject: Subject,
    settings: Sequence[tuple[StockSetting, Arm]],
    n_prompts: int,
    n_tokens: int,
    say: Say,
) -> None:
    """Decode a few prompts of each workload with every setting; those that the record has are left out."""
    model = record.content["models"][subject.number]
    rows = model.setdefault("sweep", [])
    known = {row["arm"] for row in rows}
    for done, (setting, arm) in enumerate(settings):
        if arm.name in known:
            continue
        say(done, len(settings), f"stock settings: {subject.label}, {arm.name}")
        found: list[dict[str, Any]] = []
        try:
            # anew for each temperature: what is looked up must not come from the same prompt's other answer
            for temp in plan.temps:
                with arm.open() as runner:
                    found += _speeds(runner, plan, subject, temp, n_prompts, n_tokens)
        except ServerError as error:
            found = [{"error": str(error)}]
        described = {"n_max": setting.n_max, "p_min": setting.p_min, "draft_sampling": setting.draft_sampling}
        described |= {"backend_sampling": setting.backend_sampling, "lookup": setting.lookup}
        rows.extend({"arm": arm.name, "setting": described, **row} for row in found)
        record.save()


def _speeds(runner: Runner, plan: Plan, subject: Subject, temp: float, n_prompts: int, n_tokens: int) -> Iterator[dict[str, Any]]:
    for workload in plan.workloads:
        runner.complete(plan.request(subject.warmup[workload], temp, 0, plan.n_warmup))
        requests = [plan.request(ids, temp, 1 + i, n_tokens) for i, ids in enumerate(subject.prompts[workload][:n_prompts])]
        texts = [runner.complete(request) for request in requests]
        seconds = sum(text.decode_seconds for text in texts)
        tokens = sum(max(0, text.n - 1) for text in texts)
        yield {"temp": temp, "workload": workload, "tokens_per_second": tokens / seconds if seconds else 0.0}


def best_settings(rows: Sequence[Mapping[str, Any]], temp: float, workload: str) -> list[StockSetting]:
    """The fastest setting for a workload, and the fastest for all of them together where that is another one."""
    speeds: dict[StockSetting, dict[str, float]] = {}
    for row in rows:
        if row.get("temp") == temp and row["tokens_per_second"] > 0:
            speeds.setdefault(StockSetting(**row["setting"]), {})[row["workload"]] = row["tokens_per_second"]
    here = {setting: found[workload] for setting, found in speeds.items() if workload in found}
    if not here:
        return []
    best = max(here, key=lambda setting: here[setting])
    overall = best_overall(rows, temp)
    return [best] if overall is None or overall == best else [best, overall]


def best_overall(rows: Sequence[Mapping[str, Any]], temp: float) -> StockSetting | None:
    """The setting of the largest geometric mean over the workloads, among those that decoded them all."""
    speeds: dict[StockSetting, list[float]] = {}
    for row in rows:
        if row.get("temp") == temp and row["tokens_per_second"] > 0:
            speeds.setdefault(StockSetting(**row["setting"]), []).append(row["tokens_per_second"])
    most = max(map(len, speeds.values()), default=0)
    whole = {setting: geometric_mean(found) for setting, found in speeds.items() if len(found) == most}
    return max(whole, key=lambda setting: whole[setting]) if whole else None


# -- sampled text


def compare_distributions(record: Record, plan: Plan, subject: Subject, temp: float, n: int, say: Say) -> None:
    """Draw a token of one text many times by every arm and by plain decoding, with other seeds, and compare.

    The text and the place in it are those where plain decoding varies most, the first token left out, which no arm drafts.

    Source: Pearson's test of homogeneity.
    """
    found = record.content["models"][subject.number].setdefault("chi_square", {})
    what = f"distribution: {subject.label}, "
    with subject.judge() as judge:
        complete = _told(judge.complete, say, count(), _N_PILOT * len(plan.workloads) + n, what + "plain decoding")
        tried = {name: _drawn(complete, plan, _shortest(subject, name), temp, range(_N_PILOT)) for name in plan.workloads}
        workload = max(tried, key=lambda name: max(map(_variety, tried[name][1:])))
        plain = _drawn(complete, plan, _shortest(subject, workload), temp, range(n))
    at = max(range(1, _N_DRAWN), key=lambda i: _variety(plain[i]))
    arms = [arm for arm in subject.arms(temp, workload) if arm.name not in found]
    for done, arm in enumerate(arms, 1):
        about = {"temp": temp, "workload": workload, "at": at, "n": n, "n_values": _variety(plain[at])}
        try:
            with arm.open() as runner:
                complete = _told(runner.complete, say, count(n * (done - 1)), n * len(arms), what + arm.name)
                drawn = _drawn(complete, plan, _shortest(subject, workload), temp, range(n * done, n * (done + 1)))
            p_value = same_distribution(plain[at], drawn[at])
            found[arm.name] = {**about, "p_value": p_value, "same": p_value >= MIN_P}
        except EntMTPError as error:
            found[arm.name] = {**about, "error": str(error)}
        record.save()


def _told(complete: Complete, say: Say, done: Iterator[int], total: int, what: str) -> Complete:
    """The same, which says before each text how many are done."""

    def told(request: Request) -> Text:
        say(next(done), total, what)
        return complete(request)

    return told


def _shortest(subject: Subject, workload: str) -> Sequence[int]:
    return min(subject.prompts[workload], key=len)


def _variety(tokens: Sequence[int]) -> int:
    """Values that are drawn often enough to be compared."""
    return sum(count >= _OFTEN for count in Counter(tokens).values())


def _drawn(complete: Complete, plan: Plan, prompt: Sequence[int], temp: float, seeds: range) -> list[list[int]]:
    """Tokens by place, one for each seed."""
    drawn: list[list[int]] = [[] for _ in range(_N_DRAWN)]
    for seed in seeds:
        text = complete(plan.request(prompt, temp, seed, _N_DRAWN))
        if text.tokens is None:
            raise ServerError("its answers have no tokens, so that their distribution cannot be tested.")
        tokens = ending(text)
        for i, some in enumerate(drawn):
            some.append(tokens[i] if i < len(tokens) else END)
    return drawn
