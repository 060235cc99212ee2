"""Tables from visits: ratios over the best stock arm, loops apart, invalid arms without figures, 80 columns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from bench_fakes import FakeArm, begin, plan, subject, wrong_from_5
from pages import Page, check_figures

from entmtp_local.bench.record import Record
from entmtp_local.bench.report import document
from entmtp_local.bench.results import results
from entmtp_local.bench.rounds import Plan, measure, plain_texts
from entmtp_local.bench.table import WIDTH, Progress, duration, table


def measured(arms: Sequence[FakeArm], *, gap: float = 1.0, **values: Any) -> Record:
    a_plan: Plan = plan(**({"n_rounds": 6} | values))
    record = begin(a_plan)
    about = subject(arms, gap=gap, a_plan=a_plan)
    plain_texts(record, about, a_plan)
    measure(record, a_plan, [about], lambda *_: None)
    record.content["complete"] = True
    return record


def shown(record: Record) -> str:
    lines = list(table(record.content, results(record)))
    assert all(len(line) <= WIDTH for line in lines), [line for line in lines if len(line) > WIDTH]
    return "\n".join(lines)


def stock(speed: float = 120.0) -> list[FakeArm]:
    return [FakeArm("stock plain", "stock", 100.0), FakeArm("stock mtp:3", "stock", speed)]


def test_ratios_are_over_the_fastest_stock_arm() -> None:
    record = measured([FakeArm("off", speed=90.0), FakeArm("throughput", speed=180.0), *stock()])
    found = results(record)
    (code, _) = found["blocks"]
    assert code["base"] == "stock mtp:3"
    ratio = code["arms"]["throughput"]["ratio"]
    assert (ratio["value"], ratio["low"], ratio["high"], ratio["wins"]) == pytest.approx((1.5, 1.5, 1.5, 6))
    assert ratio["doubts"] == []
    (summary,) = found["summary"]
    assert summary["arms"]["throughput"]["ratio"]["value"] == pytest.approx(1.5)
    assert summary["best_single_stock"]["arm"] == "stock mtp:3"
    assert " 1.50  " in shown(record) and "base" in shown(record)


def test_plain_stock_is_the_base_where_its_mtp_loses() -> None:
    assert results(measured([FakeArm("off"), *stock(70.0)]))["blocks"][0]["base"] == "stock plain"


def test_without_stock_ratios_are_over_plain_decoding() -> None:
    found = results(measured([FakeArm("off", speed=100.0), FakeArm("chain:3", speed=130.0)]))
    assert found["blocks"][0]["base"] == "off"
    assert found["blocks"][0]["arms"]["chain:3"]["ratio"]["value"] == pytest.approx(1.3)


def test_few_pairs_and_noise_are_said() -> None:
    text = shown(measured([FakeArm("throughput", speed=150.0), *stock()], n_rounds=2))
    assert "1.25?" in text and "? not to be relied on: fewer than 5 pairs, without those that loop; more" in text
    noisy = FakeArm("throughput", speed=lambda i: 100.0 if i % 4 < 2 else 200.0)
    assert "spreads over" in shown(measured([noisy, *stock()]))


def test_a_stock_arm_that_is_ahead_of_the_base_is_said() -> None:
    base, other = (10.0, 20.0, 30.0, 40.0, 50.0), (12.0, 24.0, 36.0, 25.0, 25.0)  # medians 30 and 25, most ratios 1.2
    arms = [
        FakeArm("stock plain", "stock", speed=lambda i: base[i // 2]),
        FakeArm("stock mtp:3", "stock", speed=lambda i: other[i // 2]),
    ]
    record = measured([FakeArm("off"), *arms], n_rounds=5)
    block = results(record)["blocks"][0]
    assert block["base"] == "stock plain"
    for arm in ("off", "stock mtp:3"):
        assert any("ahead of the base" in doubt for doubt in block["arms"][arm]["ratio"]["doubts"])
    assert "ahead of the base" in str(results(record)["summary"][0]["arms"]["off"]["ratio"]["doubts"])


def test_an_invalid_arm_has_no_figures() -> None:
    wrong = FakeArm("throughput", speed=999.0, edit=wrong_from_5)
    record = measured([FakeArm("off"), wrong, *stock()], gap=0.4)
    for block in results(record)["blocks"]:
        row = block["arms"].get("throughput")
        assert row is None or "tokens_per_second" not in row
    text = shown(record)
    assert "invalid, see below" in text and "token 5 has a logit less by 0.400" in text.replace("\n  ", " ")
    assert "999" not in text and "999" not in document(record.content, results(record))


def test_a_wrong_stock_arm_is_no_base_and_wrong_plain_decoding_takes_all_ratios() -> None:
    plain, mtp = stock()
    mtp.edit = wrong_from_5
    assert results(measured([FakeArm("off"), plain, mtp], gap=0.4))["blocks"][0]["base"] == "stock plain"
    plain, mtp = stock()
    plain.edit = wrong_from_5
    record = measured([FakeArm("off"), plain, mtp], gap=0.4)
    (block, *_) = results(record)["blocks"]
    assert block["base"] is None and "ratio" not in block["arms"]["off"]
    assert "no ratios" in shown(record)


def test_near_ties_are_counted() -> None:
    arm = FakeArm("throughput", edit=wrong_from_5)
    record = measured([arm, *stock()], gap=0.01)
    truth = results(record)["blocks"][0]["arms"]["throughput"]["truth"]
    assert (truth["compared"], truth["near_ties"], truth["wrong"]) == (12, 12, 0)
    assert truth["first_difference"]["at"] == 5 and truth["first_difference"]["near_tie"]
    assert "12 ties" in shown(record)


def test_texts_that_loop_are_counted_apart() -> None:
    """A prompt whose text loops is decoded three times as fast by the drafting arm: this is no part of its figures."""

    class Looping(FakeArm):
        def complete(self, request: Any) -> Any:
            text = super().complete(request)
            if request.prompt[0] in (4, 14):
                text.tokens = ([5, 6] * text.n)[: text.n]
                text.decode_seconds /= 3 if self.kind == "ours" else 1
            return text

    arms = [Looping("throughput", speed=150.0), Looping("stock plain", "stock", 100.0)]
    record = measured(arms, temps=(0.8,))
    row = results(record)["blocks"][0]["arms"]["throughput"]
    assert row["loops"] == {"n": 6, "of": 12}
    assert row["ratio"]["value"] == pytest.approx(1.5) and row["ratio_of_loops"]["value"] == pytest.approx(4.5)
    assert row["tokens_per_second"]["median"] == pytest.approx(150.0)
    assert "texts that loop, apart: throughput 4.50" in shown(record)


def test_where_all_texts_loop_there_is_no_ratio() -> None:
    arms = [
        FakeArm(name, kind, edit=lambda tokens: [7] * len(tokens)) for name, kind in (("off", "ours"), ("stock plain", "stock"))
    ]
    record = measured(arms, temps=(0.8,))
    assert results(record)["blocks"][0]["arms"]["off"]["ratio"] is None
    assert "12/12" in shown(record)


def test_steps_and_depths_are_summed() -> None:
    row = results(measured([FakeArm("chain:3"), *stock()]))["blocks"][0]["arms"]["chain:3"]
    assert row["tokens_per_step"] == pytest.approx(39 / 29)
    assert row["accepted_per_depth"] == pytest.approx([8 / 29, 2 / 29])
    assert row["ms_per_step"]["verify"] == pytest.approx(20 / 29)
    assert row["pace"][0][0] == 32 and row["pace"][0][1] == pytest.approx(2 * 19 / 39 * 100)
    assert row["prefill_tokens_per_second"] == pytest.approx(2.5 / 0.01)


def test_an_interrupted_run_shows_what_there_is() -> None:
    record = begin(plan())
    assert shown(record) == ""
    assert results(record) == {
        "blocks": [],
        "summary": [],
        "models": [
            {
                "model": 0,
                "label": "model-0",
                "size_bytes": 2**20,
                "quantisation": "Q4_0",
                "acceptance": [],
                "acceptance_of": None,
                "fastest": [],
            }
        ],
    }


def test_several_models_are_compared_in_one_table() -> None:
    a_plan = plan(n_rounds=5)
    record = begin(a_plan, 2)
    subjects = [subject([FakeArm("off", speed=50.0 + 20 * i), FakeArm("chain:3", speed=80.0)], number=i) for i in range(2)]
    for each in subjects:
        plain_texts(record, each, a_plan)
    measure(record, a_plan, subjects, lambda *_: None)
    found = results(record)
    assert [model["fastest"][0]["arm"] for model in found["models"]] == ["chain:3", "chain:3"]
    assert found["models"][1]["acceptance"] == pytest.approx([8 / 29, 2 / 29])
    text = shown(record)
    assert "model-0: code, temperature 0" in text and "model-1" in text and "accepted at depth" in text


def test_long_names_fit() -> None:
    shown(measured([FakeArm("throughput@full@no-copy-and-a-very-long-name"), *stock()]))


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    names = ("off", "chain:3", "<script>", "a", "b", "c", "d", "throughput")
    record = measured([*map(FakeArm, names), *stock()])
    text = document(record.content, results(record))
    assert "<script>" not in text and "http:" not in text and "https:" not in text
    assert text.count("<figure>") == 2 * 4 and "interrupted" not in text and "nan" not in text
    assert not {"script", "link", "img", "iframe"} & set(Page(text).tags)
    check_figures(text, 2 * 4)
    (tables,) = (part.split("</pre>")[0] for part in text.split("<pre>")[1:])
    assert "code, temperature 0" in tables


# -- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_tells_the_time_left() -> None:
    now = [100.0]
    out = Terminal()
    progress = Progress(out, lambda: now[0])
    progress(10, 50, "resumed here")
    now[0] += 60
    progress(20, 50, "a visit")
    assert "20 of 50, 3 min left: a visit" in out.getvalue()
    progress.clear()
    assert out.getvalue().endswith("\r")
    pipe = io.StringIO()
    progress = Progress(pipe, lambda: now[0])
    for done in range(101):
        progress(done, 100, "x")
    assert len(pipe.getvalue().splitlines()) == 11


@pytest.mark.parametrize(("seconds", "text"), [(12.3, "12 s"), (100, "2 min"), (7500, "2 h 5 min")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
