"""The reference model: its arithmetic, its training, and that llama.cpp computes the same function.

| test | failure it catches |
|---|---|
| blocks against recursion | a wrong decay, mask or inverse in the block form of the delta rule, repeated keys included |
| the inverse's gradient | a sign or transpose in the hand-written backward pass |
| drafts against one at a time | a draft that sees what the engine's cache does not hold, or misses what it holds |
| fused loss | gradients that are not those of the plain cross entropy with z-loss |
| rows go on | a resumed run that sees other text |
| repeating rows | a segment that does not repeat, or a loss that counts the wrong positions |
| penalty on repetition | wrong gradients; none where the repeated token is nearly certain; a run that repeats all the same |
| training | a loss of any part that does not fall; a GGUF that the engine refuses |
| interruption | state that a checkpoint forgets; a checkpoint from before an option that cannot go on |
| logits proof | any difference between model.py, export.py and llama.cpp |
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training is an extra: pip install '.[train]' brings PyTorch")
pytest.importorskip("tokenizers", reason="training is an extra: pip install '.[train]' brings the tokenizers package")

import torch.nn.functional as F  # noqa: E402

from scripts.reference import data, loss, model, training  # noqa: E402
from scripts.reference.export import export, tensors  # noqa: E402
from scripts.reference.tokenizer import SPECIAL, load, save, train_tokenizer  # noqa: E402

SECONDS = 100.0
torch.set_num_threads(1)  # the matrices are too small for more
Run = Callable[..., training.Trainer]

# -- a corpus small enough to be learnt in seconds


def _document(kind: str, rng: random.Random) -> str:
    a, b = rng.randrange(50), rng.randrange(50)
    name = rng.choice(["left", "right", "total", "value", "count"])
    answer = "Yes" if a > b else "No"
    texts = {
        "code": f"def add_{name}({name}: int) -> int:\n    return {name} + {a}\n\n\nassert add_{name}({b}) == {a + b}\n",
        "math": f"Problem: What is {a} plus {b}?\nSolution: {a} + {b} = {a + b}.\nAnswer: {a + b}\n",
        "chat": f"<|im_start|>user\nIs {a} more than {b}?<|im_end|>\n<|im_start|>assistant\n{answer}.<|im_end|>\n",
        "prose": f"The {name} of the {rng.choice(['garden', 'river', 'street'])} was {rng.choice(['old', 'long', 'quiet'])}.\n",
    }
    return texts[kind] * 3


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    texts = []
    for part, n in (("train", 400), ("heldout", 60)):
        (folder / part).mkdir()
        for kind in data.KINDS:
            rng = random.Random(f"{part}/{kind}")
            lines = [{"text": _document(kind, rng), "kind": kind, "source": "test", "licence": "MIT"} for _ in range(n)]
            (folder / part / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            texts += [line["text"] for line in lines if part == "train"]
    save(train_tokenizer(texts, 384), folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="session")
def run(corpus: Path) -> Run:
    def go(out: Path, **values: Any) -> training.Trainer:
        arguments = {key: values.pop(key) for key in ("resume", "stop", "log_every") if key in values}
        options = training.TrainingOptions(**{"size": "tiny"} | training.OPTIONS["tiny"] | values)
        return training.train(corpus, out, options, device="cpu", **arguments)

    return go


@pytest.fixture(scope="session")
def trained(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by the clock, long rows at its end included."""
    out = tmp_path_factory.mktemp("run")
    run(out, minutes=SECONDS / 60, log_every=2.0)
    return out


# -- arithmetic


def _rule_inputs(n_tokens: int) -> list[Any]:
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, 3, n_tokens, 32, dtype=torch.float64) for _ in range(3))
    log_decay, beta = -torch.rand(2, 3, n_tokens, dtype=torch.float64), torch.rand(2, 3, n_tokens, dtype=torch.float64)
    # a run of one token: equal keys, full beta, hardly any decay
    k[:, :, 20:90] = k[:, :, 20:21]
    beta[:, :, 20:90], log_decay[:, :, 20:90] = 1.0, -1e-4
    return [F.normalize(q, dim=-1) / math.sqrt(32), F.normalize(k, dim=-1), v, log_decay, beta]


def test_delta_rule_in_blocks_is_the_recursion() -> None:
    wide = _rule_inputs(4 * model.CHUNK)
    inputs = [x.float().requires_grad_() for x in wide]
    reference = [x.clone().requires_grad_() for x in wide]
    blocks, recursion = model.delta_rule_blocks(*inputs), model.delta_rule_recursive(*reference)
    torch.testing.assert_close(blocks.double(), recursion, atol=2e-6, rtol=0)
    weight = torch.randn_like(recursion)
    (recursion * weight).sum().backward()
    (blocks * weight.float()).sum().backward()
    for block_form, recursive in zip(inputs, reference, strict=True):
        scale = float(recursive.grad.abs().max())
        torch.testing.assert_close(block_form.grad.double(), recursive.grad, atol=2e-5 * scale, rtol=0)


def test_triangular_inverse() -> None:
    torch.manual_seed(2)
    a = torch.randn(3, 32, 32, dtype=torch.float64).tril(-1).requires_grad_()
    inverse = model.unit_lower_inverse(a)
    torch.testing.assert_close(inverse, torch.linalg.inv(torch.eye(32, dtype=torch.float64) + a))
    small = (torch.randn(2, 16, 16, dtype=torch.float64) * 0.3).tril(-1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model.unit_lower_inverse(x.tril(-1)), small)


def _tiny_model() -> Any:
    made = training.new_model("tiny", 384, 3, torch.float32)
    torch.manual_seed(4)
    for parameter in made.parameters():
        # output projections begin at zero, which would hide everything before them
        if float(parameter.detach().abs().max()) == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def test_drafts_are_what_one_token_at_a_time_gives() -> None:
    made = _tiny_model()
    mtp, table = made.mtp, made.table
    tokens = torch.randint(0, 384, (1, 24))
    with torch.no_grad():
        embedded, hidden = made.embed(tokens), made.trunk(tokens)
        drafted = mtp(embedded, hidden, torch.tensor([0, 7, 21]), table, 3, torch.float32)
        for i, start in enumerate((0, 7, 21)):
            # the true entries up to start, then draft entries one by one, with ordinary causal attention over all of them
            before = F.pad(hidden, (0, 0, 1, 0))[:, : start + 1]
            x = mtp.entry(embedded[:, : start + 1], before, torch.float32)
            for depth in range(3):
                y = mtp.mixer(mtp.attn_norm(x), table[:, : x.shape[1]])
                row = mtp.finish(x, y, torch.float32)[:, -1:]
                torch.testing.assert_close(drafted[depth][:, i], row[:, 0], atol=2e-5, rtol=1e-4)
                if depth < 2:
                    more = mtp.entry(embedded[:, start + depth + 1 : start + depth + 2], row, torch.float32)
                    x = torch.cat([x, more], dim=1)


def test_fused_loss_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_CPU", 7)
    torch.manual_seed(5)
    rows, matrix = torch.randn(3, 10, 16), torch.randn(64, 16)
    targets = torch.randint(0, 64, (3, 10))
    a, b = rows.clone().requires_grad_(), matrix.clone().requires_grad_()
    fused = loss.head_loss(a, b, targets, weight=0.3, z_weight=0.01)
    c, d = rows.clone().requires_grad_(), matrix.clone().requires_grad_()
    logits = c @ d.mT
    plain = 0.3 * (F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + 0.01 * logits.logsumexp(-1).square().mean())
    torch.testing.assert_close(fused.total, plain)
    (2 * fused.total).backward()
    (2 * plain).backward()
    torch.testing.assert_close(a.grad, c.grad)
    torch.testing.assert_close(b.grad, d.grad)


def _repetition_case() -> list[Any]:
    torch.manual_seed(8)
    rows, matrix = torch.randn(2, 12, 8, dtype=torch.float64), torch.randn(64, 8, dtype=torch.float64)
    targets = torch.randint(0, 64, (2, 12))
    matrix[targets[1, 7]], rows[1, 7] = 1.5, 1.0  # here the repeated token is nearly certain, and was not the time before
    return [rows, matrix, targets, torch.tensor([2, 4]), torch.tensor([4, 2])]


def test_repetition_loss_is_the_published_one() -> None:
    rows, matrix, targets, begins, lengths = _repetition_case()
    softmax = (rows @ matrix.T).softmax(-1)
    p = softmax.gather(-1, targets[..., None])[..., 0]
    # row i gives the token at i + 1; a segment comes for the second time at begins + lengths
    counted = [(0, i) for i in range(5, 12)] + [(1, i) for i in range(5, 12)]
    terms, wanted = [], torch.zeros_like(softmax)
    for s, i in counted:
        gap = float(p[s, i] - 0.5 * p[s, i - lengths[s]])
        terms.append(-math.log(1 - 0.9999 * abs(gap)))
        slope = math.copysign(0.9999, gap) / (1 - 0.9999 * abs(gap)) / len(counted)
        wanted[s, i] = -slope * p[s, i] * softmax[s, i]
        wanted[s, i, targets[s, i]] += slope * p[s, i]

    rows, matrix = rows.float().requires_grad_(), matrix.float()
    made = loss.repetition_loss(rows, matrix, targets, begins, lengths, weight=2.0)
    assert float(made.penalty) == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert float(made.total.detach()) == pytest.approx(2 * float(made.penalty))
    assert float(made.probability) == pytest.approx(float(sum(p[s, i] for s, i in counted)) / len(counted), rel=1e-5)
    made.total.backward()
    torch.testing.assert_close(rows.grad, 2 * (wanted.float() @ matrix), atol=1e-6, rtol=1e-4)
    assert not rows.grad[:, :5].any()


def test_repetition_loss_reaches_likely_tokens() -> None:
    matrix = torch.eye(64)
    for logit in (5.0, 10.0, 15.0):  # against 63 zeros: probabilities of 0.7 to 0.9999
        for earlier in (0.0, logit):
            rows = torch.zeros(1, 5, 64)
            rows[0, :3, 3], rows[0, 3:, 3] = earlier, logit
            rows.requires_grad_()
            made = loss.repetition_loss(rows, matrix, torch.full((1, 5), 3), torch.tensor([1]), torch.tensor([2]))
            made.total.backward()
            assert math.isfinite(float(made.penalty))
            assert torch.isfinite(rows.grad).all()
            assert float(rows.grad[0, 4, 3]) > 1e-6, (logit, earlier)
            # the earlier time is given
            assert not rows.grad[0, :2].any()


# -- data


def test_rows_go_on_where_they_were(corpus: Path, tmp_path: Path) -> None:
    tokens = data.load_tokens(corpus / "train", load(corpus / "tokenizer.json"), tmp_path)
    weights = {"code": 0.5, "math": 0.3, "chat": 0.1, "prose": 0.1}
    one = data.Mixture(tokens, weights, seed=1)
    for _ in range(80):  # past the first epoch of the most frequent kind
        one.rows(8, 128)
    assert one.epochs()["code"] > 1
    two = data.Mixture(tokens, weights, seed=1)
    two.restore(json.loads(json.dumps(one.position())))
    np.testing.assert_array_equal(one.rows(8, 128), two.rows(8, 128))
    np.testing.assert_array_equal(one.draft_starts(128, 20, 3), two.draft_starts(128, 20, 3))


def test_a_stream_gives_every_document_once_an_epoch(corpus: Path, tmp_path: Path) -> None:
    tokenizer = load(corpus / "tokenizer.json")
    tokens = data.load_tokens(corpus / "train", tokenizer, tmp_path)["math"]
    stream = data.Stream(tokens, (1,))
    ids = np.concatenate([stream.take(50)[:50] for _ in range(len(tokens.ids) // 50)])
    assert stream.epoch == 0
    end = tokenizer.token_to_id("<|endoftext|>")
    seen = [tokenizer.decode(list(part)) for part in np.split(ids, np.flatnonzero(ids == end) + 1)[:-1]]
    lines = (corpus / "train" / "math.jsonl").read_text(encoding="utf-8").splitlines()
    wanted = [json.loads(line)["text"] for line in lines]
    assert len(seen) >= len(wanted) - 2
    assert not set(seen) - set(wanted)
    assert seen[:20] != wanted[:20]


@pytest.mark.parametrize("n_tokens", [64, 256, 1024])
def test_repeating_rows(corpus: Path, tmp_path: Path, n_tokens: int) -> None:
    tokens = data.load_tokens(corpus / "train", load(corpus / "tokenizer.json"), tmp_path)
    mixture = data.Mixture(tokens, dict.fromkeys(data.KINDS, 1.0), seed=1)
    seen: list[tuple[int, int]] = []
    for _ in range(100):
        rows = mixture.rows(4, n_tokens)
        ordinary, repetitions = mixture.split_repeating(rows, 2)
        assert ordinary.shape == repetitions.ids.shape == (2, n_tokens + 1)
        left = [row for row in rows if not any(np.array_equal(row, other) for other in ordinary)]
        for ids, begin, length in zip(repetitions.ids, repetitions.begins, repetitions.lengths, strict=True):
            text = ids[: begin + length]
            assert any(np.array_equal(text, row[: begin + length]) for row in left)
            np.testing.assert_array_equal(ids[begin + length :], ids[begin:-length])
            assert begin + 2 * length <= n_tokens
            seen.append((int(begin), int(length)))
    begins, lengths = zip(*seen, strict=True)
    longest = min(64, n_tokens // 4)
    assert min(begins) >= 16 and max(begins) <= max(16, min(128, n_tokens // 4))
    assert min(lengths) == 2 and 0.8 * longest < max(lengths) <= longest
    assert abs(np.median(lengths) - math.sqrt(2 * longest)) < 0.4 * math.sqrt(2 * longest)


# -- training


@pytest.mark.slow
def test_every_loss_falls(trained: Path) -> None:
    events = [json.loads(line) for line in (trained / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [event for event in events if event["event"] == "train"]
    assert len(steps) > 3
    assert steps[-1]["done"] > 0.9
    for part in training.PARTS:
        assert steps[-1][part] < 0.5 * math.log(384), part
        assert steps[-1][part] < 0.6 * steps[0][part], part
    heldout = [event for event in events if event["event"] == "heldout"][-1]["kinds"]
    assert set(heldout) == set(data.KINDS)
    for kind, values in heldout.items():
        assert values["trunk"] < 0.5 * math.log(384), kind
        assert abs(values["lse"]) < 3, f"{kind}: the z-loss does not hold the softmax denominator near one"
        assert values["reserved"] < -1, f"{kind}: ids that never occur are not pushed down"


def test_an_interrupted_run_ends_like_an_uninterrupted_one(run: Run, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", steps=14)
    run(tmp_path / "parts", steps=14, stop=lambda trainer: trainer.step == 5)
    assert not (tmp_path / "parts" / "model.gguf").exists()
    run(tmp_path / "parts", steps=14, resume=True, stop=lambda trainer: trainer.step == 13)  # among the repeating rows
    resumed = run(tmp_path / "parts", steps=14, resume=True)
    assert resumed.step == whole.step == 14
    assert resumed.n_tokens == whole.n_tokens
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert (tmp_path / "whole" / "model.gguf").read_bytes() == (tmp_path / "parts" / "model.gguf").read_bytes()


def test_training_lowers_what_is_repeated(run: Run, tmp_path: Path) -> None:
    def repeated(name: str, weight: float) -> float:
        run(tmp_path / name, steps=40, long_from=0.0, repeat_from=0.25, repeat_weight=weight, log_every=1e-9)
        events = map(json.loads, (tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines())
        steps = [event for event in events if event["event"] == "train"]
        assert ["repeat" in event for event in steps] == [False] * 10 + [True] * 30
        assert all(math.isfinite(event["repeat"]) for event in steps[10:])
        return float(np.mean([event["repeat_p"] for event in steps[-10:]]))

    # the rows are the same in both runs
    assert repeated("with", 1.0) < 0.8 * repeated("without", 0.0)


def test_a_checkpoint_from_before_the_repeating_rows_goes_on(run: Run, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", steps=14)
    path = tmp_path / "parts" / "checkpoint.pt"
    run(path.parent, steps=14, repeat_rows=0, stop=lambda trainer: trainer.step == 6)
    state = torch.load(path, weights_only=True)
    options = json.loads(state["options"])
    state["options"] = json.dumps({key: value for key, value in options.items() if not key.startswith("repeat_")})
    torch.save(state, path)
    resumed = run(path.parent, steps=14, resume=True)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    run(tmp_path, steps=1)
    with pytest.raises(ValueError, match="--resume"):
        run(tmp_path, steps=1)


def test_resuming_needs_a_checkpoint(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        run(tmp_path, steps=1, resume=True)


# -- export


def test_types_and_tied_output(corpus: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    made, tokenizer = _tiny_model(), load(corpus / "tokenizer.json")
    for kind in ("F32", "F16", "Q8_0"):
        export(made, tokenizer, tmp_path / f"{kind}.gguf", kind)
        read = {tensor.name: tensor for tensor in GGUFReader(tmp_path / f"{kind}.gguf").tensors}
        assert read["blk.0.ffn_up.weight"].tensor_type.name == kind
        assert read["blk.0.ssm_conv1d.weight"].tensor_type.name == "F32"
        assert "output.weight" not in read
        assert list(read) == [name for name, _ in tensors(made)]
    with pytest.raises(ValueError, match="Q9"):
        export(made, tokenizer, tmp_path / "x.gguf", "Q9")
    assert len(SPECIAL) == 21


@pytest.fixture(scope="session")
def check() -> Any:
    """The proof's module; it loads the engine, which the arithmetic above does without."""
    from scripts import check_export

    return check_export


@pytest.mark.slow
def test_exported_model_generates(trained: Path, check: Any) -> None:
    from entmtp_local.native.session import Session, SessionOptions

    with Session.open(SessionOptions(model_path=trained / "model.gguf", max_depth=3, max_nodes=3, n_ctx=512)) as session:
        assert session.notices == []
        assert session.n_vocab == 384
        turn = session.tokenize("<|im_end|>", add_special=False, parse_special=True)
        assert len(turn) == 1 and session.is_eog(turn[0])


@pytest.mark.slow
def test_engine_computes_the_same_logits(trained: Path, corpus: Path, check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [str(corpus / "heldout" / f"{kind}.jsonl") for kind in data.KINDS]
    assert check.main([str(trained), *texts, "--lines", "500"]) == 0, capsys.readouterr().out
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for part in ("trunk", "trunk_steps", "mtp1", "mtp2", "mtp3"):
        assert result[part]["largest"] < 1e-3
        assert result[part]["n_rows"] >= 510
        assert result[part]["same_best"] > 0.99
    assert result["lines_differing"] == 0


def test_engine_computes_the_same_logits_for_random_weights(corpus: Path, tmp_path: Path, check: Any) -> None:
    made, tokenizer = _tiny_model(), load(corpus / "tokenizer.json")
    export(made, tokenizer, tmp_path / "model.gguf", "F32")
    tokens = np.random.default_rng(6).integers(0, 384, 200).tolist()
    with check.Engine(tmp_path / "model.gguf", n_ctx=256) as engine:
        parts = check.compare_logits(made, engine, tokens)
        # the comparison can fail: one weight changed in PyTorch only
        with torch.no_grad():
            made.mtp.hnorm.weight[0] += 1.0
        changed = check.compare_logits(made, engine, tokens)
    assert all(part.largest < 1e-3 for part in parts.values()), parts
    assert changed["trunk"].largest < 1e-3 < changed["mtp1"].largest
