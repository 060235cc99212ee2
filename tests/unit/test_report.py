"""The calibration report on small made-up logs.

| test | failure it catches |
|---|---|
| well formed | tags left open, figures that are not XML, sections that are missing |
| escaping | names from files that become markup |
| no network | a page that fetches something |
| figures | one without a title, or with an axis of which nobody knows what it measures |
| names | fingerprints in place of names, or names of another model |
| replays | a replay that is headed as a calibration |
| reliability | nodes counted twice or not at all, an error that is not the bins' own |
| hull | trees marked that calibration did not choose, or chosen ones that are not |
| by entropy | candidates counted where none can be accepted |
| trace | steps that are not those of the replay |
| missing parts | an error where there is no log, no task, no text, no draft or no figure |
| numbers and axes | figures that people cannot read, labels outside the axis |
"""

from __future__ import annotations

import re
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from pages import Page, check_figures

from entmtp_local.calibration import figures
from entmtp_local.calibration.figures import Logged, bins_of, calibration_error, logged_tasks
from entmtp_local.calibration.fit import acceptance_rows, fit_acceptance, fit_tasks, hull
from entmtp_local.calibration.record import wide_shape
from entmtp_local.calibration.replay import replay
from entmtp_local.calibration.report import write_report
from entmtp_local.calibration.wide_log import LoggedText, WideLog
from entmtp_local.plots import Plot, Scale, around, number
from entmtp_local.speculative.cost import CostTable
from entmtp_local.speculative.policy import parse_policy
from entmtp_local.speculative.profile import Key, Profile, shape_of

SECTIONS = ("about", "costs", "acceptance", "reliability", "hull", "trace", "policies")
SHAPE = wide_shape(8, n_nodes=24)
COSTS = CostTable({1: 10e-3, 2: 11e-3, 4: 12e-3, 8: 15e-3, 16: 24e-3}, draft_fixed=1e-3, level={1: 1e-3, 2: 1.2e-3})


def logged_text(rng: np.random.Generator, task: str, n: int, right: float) -> LoggedText:
    """A text whose drafts are the text's own tokens with a chance, by the best-ranked child mostly."""
    tokens = rng.integers(0, 50, n).astype(np.int32)
    drafts = np.full((n - 1, SHAPE.n_nodes), 99, dtype=np.int32)
    for i in range(n - 1):
        drafts[i, 0] = tokens[i]
        for node in range(1, SHAPE.n_nodes):
            at = i + SHAPE.depths[node]
            if at < n and rng.random() < right / (1 + 3 * SHAPE.ranks[node]):
                drafts[i, node] = tokens[at]
    logp = np.log(rng.uniform(0.05, 0.9, drafts.shape)).astype(np.float32)
    below = rng.uniform(0.1, 3.0, drafts.shape).astype(np.float32)
    entropies = rng.lognormal(0.0, 1.5, n).astype(np.float32)
    return LoggedText(task, 5, tokens, bool(rng.random() < 0.5), entropies, drafts, logp, below)


def wide_log(*tasks: str, n_texts: int = 6) -> WideLog:
    rng = np.random.default_rng(7)
    texts = [
        logged_text(rng, task, int(rng.integers(20, 60)), 0.5 + 0.2 * i) for i, task in enumerate(tasks) for _ in range(n_texts)
    ]
    return WideLog(SHAPE, {"model": "tiny.gguf", "temp": 0.8}, texts)


LOG = wide_log("<b>", "code")
KEY = Key("model & fingerprint", None, "engine", "<script>alert(1)</script>", 4, None, 0, None)
MEASURED = (
    {"policy": "throughput", "task": "<b>", "temp": 0.8, "ratio": 1.75, "tokens_per_step": 2.5, "tokens_per_second": 1234.5},
    {"policy": "<i>", "ratio": "n/a", "other": [1, 2]},
)
PROFILE = Profile(COSTS, KEY, fit_tasks(LOG, COSTS), quick=False, created="2026-01-02", measured=MEASURED)


def written(tmp_path: Path, profile: Profile, log: WideLog | None, costs_of: str | None = None) -> str:
    path = tmp_path / "report.html"
    write_report(path, profile, log, costs_of=costs_of)
    page = path.read_text(encoding="utf-8")
    assert tuple(Page(page).ids) == SECTIONS
    return page


def section(page: str, name: str) -> str:
    found = re.search(f'<section id="{name}">(.*?)</section>', page, re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("report"), PROFILE, LOG)


def logged(name: str) -> Logged:
    return next(each for each in logged_tasks(PROFILE, LOG) if each.name == name)


def test_the_page_is_well_formed_and_has_every_section(page: str) -> None:
    for name in SECTIONS:
        assert "<table" in section(page, name) or "<svg" in section(page, name)
    assert len(re.findall("<svg", section(page, "hull"))) > 3 * 2


def test_what_files_hold_is_escaped(page: str) -> None:
    assert "<b>:" not in page and "<i>" not in page and "<script" not in page
    assert "<h3>&lt;b&gt;</h3>" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in section(page, "about")
    assert "model &amp; fingerprint" in page


def test_characters_that_xml_does_not_allow_are_replaced(tmp_path: Path) -> None:
    log = wide_log("a\x00\ud800b")
    found = written(tmp_path, Profile(COSTS, tasks=fit_tasks(log, COSTS)), log)
    assert "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b" in found


def test_the_page_needs_no_network(page: str) -> None:
    assert "http:" not in page and "https:" not in page and "//" not in page
    assert not {"script", "link", "img", "iframe"} & set(Page(page).tags)
    assert "url(" not in page and "@import" not in page


def test_figures_have_titles_axes_and_units(page: str) -> None:
    check_figures(page, 3 + 2 * 3 + 2 * 3 + 2 * 3 + 2)


def test_names_stand_before_fingerprints(tmp_path: Path) -> None:
    key = Key("f1", "f2", "source patches cuda", "A card", 4, None, 0, None)
    about = {"model": "f1", "name": "A & B 27B", "file": "b.gguf", "mtp_file": "head.gguf", "temp": 0.8}
    profile = replace(PROFILE, key=key)
    head = section(written(tmp_path, profile, replace(LOG, about=about)), "about")
    assert "<dd>A &amp; B 27B, b.gguf <small>f1</small></dd>" in head and "<dd>head.gguf <small>f2</small></dd>" in head
    assert "<dd>A card</dd>" in head and "<dd>cuda <small>source patches</small></dd>" in head and "texts of" not in head
    # texts of another model do not name this one
    head = section(written(tmp_path, profile, replace(LOG, about=about | {"model": "f3"})), "about")
    assert "<dt>model</dt><dd>f1</dd>" in head and "<dt>texts of</dt><dd>A &amp; B 27B, b.gguf <small>f3</small></dd>" in head
    # names are not always there
    head = section(written(tmp_path, profile, None), "about")
    assert "<dd>f1</dd>" in head and "<dd>f2</dd>" in head


def test_a_replay_is_headed_as_one(tmp_path: Path, page: str) -> None:
    about = {"model": "f1", "name": "B 27B", "device": "Some CPU", "temp": 0.8}
    found = written(tmp_path, Profile(COSTS, tasks=PROFILE.tasks), replace(LOG, about=about), costs_of="a <card>")
    head = section(found, "about")
    assert "<h1>Replay</h1>" in found and "<title>EntMTP-local: replay</title>" in found and "calibrat" not in head
    assert "What was replayed" in head and "<dd>a &lt;card&gt;</dd>" in head and "forecast" in head
    assert "<dd>B 27B <small>f1</small></dd>" in head and "<dd>Some CPU</dd>" in head
    assert "<h1>Calibration</h1>" in page and "What was calibrated" in page


def test_the_head_says_what_was_calibrated(page: str) -> None:
    head = section(page, "about")
    assert "2026-01-02" in head and "<dd>full</dd>" in head and "<dd>whole</dd>" in head and "tiny.gguf" in head
    for name, fit in PROFILE.tasks.items():
        row = re.search(f"<tr><th>{re.escape(escape(name))}</th>(.*?)</tr>", head)
        assert row is not None
        cells = re.findall("<td>(.*?)</td>", row.group(1))
        entropies = np.concatenate([each.entropies for each in LOG.texts if name in ("all", each.task)])
        assert cells[:3] == [f"{fit.n_positions:,}", f"{fit.n_texts:,}", number(float(entropies.mean(dtype=np.float64)))]


def test_reliability_counts_every_judged_node_once(page: str) -> None:
    each = logged("code")
    found = figures.reliability(each)
    assert found is not None
    assert found.n_fitted + found.n_judged == len(each.positions.texts)
    others = figures.Positions(WideLog(SHAPE, {}, [t for i, t in enumerate(each.positions.texts) if i % 4 in (1, 2)]))
    rows, right = acceptance_rows(others, fit_acceptance(others))
    for bins in found.bins.values():
        assert sum(b.n for b in bins) == found.n_nodes == len(right)
        assert sum(b.n * b.observed for b in bins) == pytest.approx(right.sum())
    # the head's own word needs no fit
    assert sum(b.n * b.stated for b in found.bins["the head's own word"]) == pytest.approx(np.exp(rows[:, 1]).sum(), rel=1e-3)
    shown = section(page, "reliability")
    assert f"{found.n_nodes:,} nodes" in shown
    table = shown.split("<table")[-1]
    counts = [re.findall("<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert len(counts) == figures.N_BINS
    assert sum(int(row[0].replace(",", "")) for row in counts) == found.n_nodes
    assert sum(int(row[3].replace(",", "")) for row in counts) == found.n_nodes


def test_the_calibration_error_is_the_mean_distance_of_the_bins() -> None:
    stated, right = np.array([0.05, 0.05, 1.0, 0.95]), np.array([1.0, 0.0, 1.0, 1.0])
    bins = bins_of(stated, right)
    assert [b.n for b in bins] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert calibration_error(bins) == pytest.approx((2 * 0.45 + 2 * 0.025) / 4)


def test_the_hull_marks_the_trees_that_calibration_chose(page: str) -> None:
    parts = re.split("<h3>", section(page, "hull"))[1:]
    assert [unescape(part.split("</h3>")[0]) for part in parts] == list(PROFILE.tasks)
    for part, (name, fit) in zip(parts, PROFILE.tasks.items(), strict=True):
        marked = [int(size) for size in re.findall(r'data-hull="(\d+)"', part)]
        assert marked == hull(logged(name).positions, fit.hydra, COSTS)


def test_points_are_those_of_the_walk() -> None:
    each = logged("code")
    for point in figures.prefixes(each, each.fit.hydra, COSTS):
        n_tokens, n_steps, _ = each.positions.walk(set(each.fit.hydra[1 : point.size]))
        assert point.per_step == n_tokens / n_steps
        drafted = COSTS.draft_seconds(shape_of(each.fit.hydra[: point.size]))
        assert point.seconds == pytest.approx(COSTS.verify_seconds(point.size) + drafted)
        assert point.per_second == pytest.approx(point.per_step / point.seconds)


def test_by_entropy_leaves_out_what_cannot_be_accepted() -> None:
    each = logged("<b>")
    found = figures.accepted_by_entropy(each)
    judged = sum(len(t.drafts) - 1 for t in each.positions.texts)
    assert sum(n for _, n in found) == judged
    right = sum(
        int(t.drafts[i, SHAPE.children[0][0]] == t.tokens[i + 1]) for t in each.positions.texts for i in range(len(t.drafts) - 1)
    )
    assert sum(hits for hits, _ in found) == right
    assert all(low <= hits / n <= high for hits, n in found for low, high in [figures.share_interval(hits, n)])


def test_the_traced_steps_are_those_of_a_replay() -> None:
    each = logged("code")
    shown, steps = figures.traced(each, PROFILE)
    others = [t for t in each.positions.texts if t is not shown]
    stats = replay(WideLog(SHAPE, {}, [*others, shown], each.log.ends), parse_policy("throughput"), PROFILE).stats[-1]
    assert len(steps) == stats.n_steps
    assert sum(size - 1 for _, size in steps) == stats.n_nodes
    positions = [position for position, _ in steps]
    assert positions[0] == 0 and positions == sorted(set(positions)) and positions[-1] < len(shown.tokens) - 1


def test_forecasts_are_replays_and_measured_rows_are_called_so(page: str) -> None:
    shown = section(page, "policies")
    forecast, measured = shown.split("<h3>Measured</h3>")
    assert "Forecast from the log, not measured" in forecast
    ratios = figures.forecast(logged_tasks(PROFILE, LOG), PROFILE).rows
    assert all(row[0] == pytest.approx(1.0) for row in ratios["off"])
    for name, row in ratios.items():
        assert f"<th>{name}</th>" in forecast
        assert f"{row[0][0]:.2f}" in forecast
    assert "1.75" in measured and "1,234" in measured and "n/a" in measured and "&lt;i&gt;" in measured
    assert "Not used" not in measured


def test_what_something_else_disturbed_is_told(tmp_path: Path) -> None:
    gains = (("code", 1.4), ("math", 1.9))
    rows = [
        {"task": task, "policy": policy, "temp": 0.8, "tokens_per_second": 100.0, "ratio": ratio, "tokens_per_step": n}
        for task, gain in gains
        for policy, ratio, n in (("off", 1.0, 1.0), ("chain:1", gain, 1.5))
    ]
    tasks = {**PROFILE.tasks, "math": PROFILE.tasks["code"]}
    write_report(tmp_path / "a.html", replace(PROFILE, tasks=tasks, measured=tuple(rows)), LOG)
    shown = section((tmp_path / "a.html").read_text(encoding="utf-8"), "policies")
    assert "Not used: math, where drafts gained more" in shown


def test_a_policy_that_the_log_is_too_shallow_for_is_left_out() -> None:
    shape = wide_shape(2)
    rng = np.random.default_rng(3)
    n = 30
    size = (n - 1, shape.n_nodes)
    drafts = rng.integers(0, 3, size).astype(np.int32)
    floats = np.full(size, -1.0, dtype=np.float32)
    tokens = rng.integers(0, 3, n).astype(np.int32)
    text = LoggedText("code", 5, tokens, False, np.ones(n, dtype=np.float32), drafts, floats, -floats)
    log = WideLog(shape, {}, [text])
    profile = Profile(COSTS, tasks=fit_tasks(log, COSTS))
    found = figures.forecast(logged_tasks(profile, log), profile)
    assert set(found.left_out) >= {"chain:3", "hydra:7", "tree:wide"}
    assert set(found.rows) >= {"off", "chain:2", "entropy-chain", "entmtp", "throughput"}
    # whatever is left of a policy knows what was fitted: chains of its own, not those of a policy without a profile
    assert found.n_uncovered == 0


def test_without_a_log_what_the_profile_holds_is_shown(tmp_path: Path) -> None:
    found = written(tmp_path, PROFILE, None)
    for name in ("reliability", "hull", "trace"):
        assert "There is no log" in section(found, name) and "<svg" not in section(found, name)
    assert "by depth and rank" in section(found, "acceptance") and "by entropy" not in section(found, "acceptance")
    assert "Forecast" not in section(found, "policies") and "Measured" in section(found, "policies")


@pytest.mark.parametrize("log", [None, LOG])
def test_without_tasks_costs_are_shown(tmp_path: Path, log: WideLog | None) -> None:
    found = written(tmp_path, Profile(CostTable({1: 0.02})), log)
    for name in ("acceptance", "reliability", "hull", "trace", "policies"):
        assert "no tasks" in section(found, name) and "<svg" not in section(found, name)
    assert "<svg" in section(found, "costs") and "Nothing can be drafted" in section(found, "costs")


def test_texts_without_drafts_are_as_none(tmp_path: Path) -> None:
    empty = [
        replace(
            t, tokens=t.tokens[:1], entropies=t.entropies[:1], drafts=t.drafts[:0], logp=t.logp[:0], head_entropies=t.logp[:0]
        )
        for t in LOG.texts
    ]
    for texts in ([], empty):
        found = written(tmp_path, PROFILE, WideLog(SHAPE, {}, texts))
        assert "no drafts" in section(found, "hull")


def test_few_texts_are_said_to_be_few(tmp_path: Path) -> None:
    log = wide_log("code", n_texts=3)
    found = written(tmp_path, Profile(COSTS, tasks=fit_tasks(log, COSTS)), log)
    assert "3 texts are too few" in section(found, "reliability")
    # all tasks together are that one task
    assert len(re.findall("<h3>", section(found, "hull"))) == 1


def test_nothing_accepted_and_one_measured_size(tmp_path: Path) -> None:
    texts = [replace(t, drafts=np.where(np.arange(SHAPE.n_nodes) == 0, t.drafts, 99)) for t in LOG.texts]
    log = WideLog(SHAPE, {}, texts)
    for costs in (COSTS, CostTable({1: 0.02}), CostTable({1: 0.02}, level={1: 1e-3})):
        written(tmp_path, Profile(costs, tasks=fit_tasks(log, costs)), log)


def test_a_long_log_is_thinned_out_the_same_way_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_MOST", 100)
    monkeypatch.setattr(figures, "MOST_REPLAYED", 60)
    first = written(tmp_path, PROFILE, LOG)
    assert first == written(tmp_path, PROFILE, LOG)
    assert all(len(each.positions) < each.fit.n_positions for each in logged_tasks(PROFILE, LOG))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (1, "1.00"), (0.01234, "0.0123"), (99.96, "100.0"), (1234.6, "1,235"), (-2.5, "-2.50"), (3e-7, "3.00e-07")],
)
def test_numbers(value: float, expected: str) -> None:
    assert number(value) == expected
    assert number(float("nan")) == number(float("inf")) == "–"


@pytest.mark.parametrize(
    "scale",
    [
        Scale(0, 0.37, 0, 100),
        Scale(3, 3, 0, 100),
        Scale(-5, 12345, 0, 100),
        Scale(0.02, 7, 0, 100, True),
        Scale(1, 3e5, 0, 9, True),
    ],
)
def test_ticks_lie_on_the_axis_and_are_few(scale: Scale) -> None:
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 9
    assert all(scale.low - 1e-9 <= value <= scale.high + 1e-9 for value, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks)
    assert all(0 <= scale(value) <= 100 for value in (scale.low - 1, scale.low, scale.high, scale.high * 2))


def test_marks_stay_on_the_paper() -> None:
    plot = Plot("title", "x", "y", (0, 1), around([2.0, 4.0]))
    plot.dot(5, 9, "s0", "outside")
    svg = ElementTree.fromstring(re.findall("<svg.*</svg>", plot.figure(), re.DOTALL)[0])
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    dot = svg.find("circle")
    assert dot is not None and float(dot.attrib["cx"]) <= width and 0 <= float(dot.attrib["cy"]) <= height
