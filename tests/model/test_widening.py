"""Widening changes what a model costs, not what it says: the shipped model against wide copies of it, through the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from model.conftest import ROOT, cli

from entmtp_local.errors import UsageError
from entmtp_local.native.gguf_header import read_header
from entmtp_local.native.model_file import read_model
from entmtp_local.native.session import Session, SessionOptions
from scripts.reference.widen import Vocabulary
from scripts.reference.widen_check import DEPTHS, Probe, Vocab, compare, read_texts, windows
from scripts.reference.widen_file import widen
from scripts.reference.widen_shapes import SHAPES, Shape, get_shape
from scripts.reference.widen_small import SmallModel
from scripts.reference.widen_vocabulary import N_REAL_TEXT, N_REAL_VOCAB, REAL_CURVE
from scripts.widen_model import main, wide_ids

TEXT = [ROOT / "README.md", ROOT / "docs"]
CUSTOM = {"n_layer": 12, "n_embd": 512, "n_ff": 1024, "n_head": 6, "n_head_kv": 2, "n_key_heads": 3, "n_value_heads": 6}
N_VOCAB = 12_288

# Both files in f32 with f32 caches; measured largest differences are 2e-4 for the trunk and 6e-4 for depth 3, of logits up to
# 16. What is left is rounding: the constant for padding and the order of sums.
ATOL_F32 = 5e-3


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shape") / "custom.json"
    path.write_text(json.dumps(CUSTOM | {"n_vocab": N_VOCAB, "tied": True, "n_ctx_train": 4096}))
    return path


@pytest.fixture(scope="module")
def small_f32(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(shipped, tmp_path_factory.mktemp("small") / "small.gguf", "same", "F32")


@pytest.fixture(scope="module")
def wide_f32(shipped: Path, custom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(shipped, tmp_path_factory.mktemp("wide") / "wide.gguf", str(custom), "F32")


def written(small: Path, out: Path, shape: str, type: str, *more: str) -> Path:
    arguments = [str(small), "--shape", shape, "--out", str(out), "--type", type, "--text", *map(str, TEXT), *more]
    assert main(arguments) == 0
    return out


def text_windows(small: Path, n: int, n_tokens: int = 96) -> list[list[int]]:
    with Vocab(small) as vocab:
        return [window[:n_tokens] for window in windows(vocab, read_texts(TEXT), n, skip=700)]


def test_logits_of_trunk_and_head_are_those_of_the_small_model(small_f32: Path, wide_f32: Path) -> None:
    found = compare(small_f32, wide_f32, wide_ids(wide_f32), text_windows(small_f32, 1))
    assert [difference.depth for difference in found] == list(range(DEPTHS + 1))
    for difference in found:
        assert difference.n_rows >= 64
        assert difference.largest_logit > 5, "the model says nothing"
        assert difference.max_logit < ATOL_F32, f"depth {difference.depth}"
        assert difference.max_kl < 1e-5
        assert difference.max_padding < 1e-6


def test_the_file_is_what_its_shape_says(wide_f32: Path) -> None:
    info = read_model(wide_f32)
    assert (info.n_layer, info.n_layer_nextn, info.n_embd, info.n_vocab) == (12, 1, 512, N_VOCAB)
    assert info.quantisation == "F32"
    assert info.has_mtp and info.chat_template


def test_text_becomes_the_same_tokens_with_other_ids(shipped: Path, wide_f32: Path) -> None:
    ids = wide_ids(wide_f32)
    texts = [
        *read_texts(TEXT),
        "<|im_start|>user\nWhat is 17 * 23?<|im_end|>\n",
        "[PAD7] \u00e9t\u00e9 \u4f60\u597d \U0001f680",
        "",
    ]
    with Vocab(shipped) as small, Vocab(wide_f32) as wide:
        for text in texts:
            assert wide.tokenize(text) == ids[small.tokenize(text)].tolist()
    with Session.open(SessionOptions(wide_f32, n_ctx=512)) as session:
        end = session.tokenize("<|im_end|>", add_special=False, parse_special=True)
        assert len(end) == 1 and end[0] >= N_VOCAB - 64 and session.is_eog(end[0])


def test_the_engine_drafts_with_a_wide_file(shipped: Path, wide_f32: Path) -> None:
    arguments = ("-p", "def add(a, b):\n", "-n", "24", "--temp", "0", "--json", "--policy", "chain:3")
    small, wide = cli("run", str(shipped), *arguments), cli("run", str(wide_f32), *arguments)
    assert wide.code == 0, wide.err
    assert wide.json["text"][:20] == small.json["text"][:20]
    assert wide.json["n_steps"] < wide.json["n_generated"], "no draft was accepted"


def test_extra_layers_change_nothing_at_all(shipped: Path, custom: Path, tmp_path: Path) -> None:
    """The same shape with and without the layers that the small model does not fill: equal to the last bit."""
    few = written(shipped, tmp_path / "few.gguf", str(custom), "F32", "--vocab", "small", "--layers", "8")
    many = written(shipped, tmp_path / "many.gguf", str(custom), "F32", "--vocab", "small", "--layers", "12")
    names = {tensor.name: tensor for tensor in gguf.GGUFReader(many).tensors}
    for name in ("attn_qkv", "ffn_up", "ffn_gate", "attn_gate"):
        assert np.count_nonzero(names[f"blk.8.{name}.weight"].data) > 0.99 * names[f"blk.8.{name}.weight"].data.size
    for name in ("blk.8.ssm_out.weight", "blk.8.ffn_down.weight", "blk.11.attn_output.weight"):
        assert not names[name].data.any()
    for difference in compare(few, many, wide_ids(many), text_windows(shipped, 1, 32)):
        assert difference.max_logit == 0.0


@pytest.fixture(scope="module")
def tied(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with its embedding as output, as tied models are stored. It says nothing sensible."""
    path = tmp_path_factory.mktemp("tied") / "tied.gguf"
    small = SmallModel(shipped)
    writer = gguf.GGUFWriter(path, "qwen35")
    for key, value, kind, item in small.fields():
        if key != "general.architecture":
            writer.add_key_value(key, value, kind, item)
    for name in sorted(small.names - {"output.weight"}):
        writer.add_tensor(name, small.tensor(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("shape_is_tied", [True, False])
def test_a_tied_model_stays_the_same_and_padding_gets_the_logits_of_its_rows(
    tied: Path, custom: Path, tmp_path: Path, shape_is_tied: bool
) -> None:
    small = SmallModel(tied)
    shape = replace(get_shape(str(custom)), tied=shape_is_tied)
    ids = np.random.default_rng(0).permutation(N_VOCAB)[: len(small.tokens)]
    row = 7
    padding = Vocabulary(ids, N_VOCAB, np.float32(1.5) * small.output[row : row + 1])
    wide = widen(small, shape, padding, tmp_path / "wide.gguf", "F32")
    names = {tensor.name for tensor in gguf.GGUFReader(wide.path).tensors}
    assert ("output.weight" in names) is not shape_is_tied

    tokens = text_windows(tied, 1, 64)[0]
    with Probe(tied) as probe:
        before = probe.rows(tokens)
    with Probe(wide.path, ids) as probe:
        after = probe.rows(tokens)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(b.logits, a.logits, atol=ATOL_F32)
        n_padding = N_VOCAB - len(small.tokens)
        np.testing.assert_allclose(b.log_others, np.log(n_padding) + 1.5 * a.logits[:, row], atol=2 * ATOL_F32)


def test_a_model_without_reserved_tokens_needs_free_features_for_padding(shipped: Path, custom: Path, tmp_path: Path) -> None:
    small = SmallModel(shipped)
    shape = replace(get_shape(str(custom)), n_embd=256)
    vocabulary = Vocabulary(np.arange(len(small.tokens)), N_VOCAB)
    with pytest.raises(UsageError, match="no free 256 features"):
        widen(small, shape, vocabulary, tmp_path / "wide.gguf", "F32")
    assert not list(tmp_path.iterdir()), "a failed run leaves nothing behind"


@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q4_K_M"])
def test_every_type_says_the_same_up_to_its_own_rounding(shipped: Path, custom: Path, tmp_path: Path, type: str) -> None:
    wide = written(shipped, tmp_path / "wide.gguf", str(custom), type)
    assert read_model(wide).n_embd == 512
    for difference in compare(shipped, wide, wide_ids(wide), text_windows(shipped, 1, 48)):
        # measured: 6e-2 at most for Q4_K and Q4_K_M, whose own rounding it is
        assert difference.mean_kl < {"F16": 1e-5, "BF16": 2e-4, "Q8_0": 2e-3}.get(type, 1e-1), f"depth {difference.depth}"
        assert difference.max_padding < 1e-6


def test_the_wrong_files_and_shapes_are_one_sentence(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], custom: Path
) -> None:
    def fails(*arguments: str) -> str:
        assert main(arguments) != 0
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and error.endswith(".")
        return error

    out = str(tmp_path / "wide.gguf")
    assert "4 of 8 finds no place" in fails(str(shipped), "--shape", str(custom), "--layers", "4", "--out", out)
    assert "--vocab" in fails(str(shipped), "--shape", str(custom), "--vocab", "many", "--out", out)
    assert "two files" in fails("--check", str(shipped))
    assert "was not written by this script" in fails("--check", str(shipped), str(shipped), "--text", str(TEXT[0]))
    assert not list(tmp_path.iterdir())


def expected_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Some tensors of a public model, by its configuration: columns, rows."""
    d = shape.n_embd
    return {
        "token_embd.weight": (d, shape.n_vocab),
        "blk.0.attn_qkv.weight": (d, 2 * shape.n_key_heads * 128 + shape.n_value_heads * 128),
        "blk.0.ssm_out.weight": (shape.n_value_heads * 128, d),
        "blk.3.attn_q.weight": (d, 2 * shape.n_head * 256),
        "blk.3.attn_k.weight": (d, shape.n_head_kv * 256),
        "blk.3.ffn_down.weight": (shape.n_ff, d),
        f"blk.{shape.n_layer}.nextn.eh_proj.weight": (2 * d, d),
    }


@pytest.mark.slow
def test_the_0_8b_shape_with_the_real_vocabulary(shipped: Path, tmp_path: Path) -> None:
    """At 4 bits, against the small model at 4 bits: what quantising costs is the same, so the difference is small."""
    shape = SHAPES["qwen3.5-0.8b"]
    wide = written(shipped, tmp_path / "wide.gguf", shape.name, "Q4_0", "--pure")
    small = written(shipped, tmp_path / "small.gguf", "same", "Q4_0", "--pure")
    info = read_model(wide)
    assert (info.n_layer, info.n_embd, info.n_vocab, info.n_ctx_train) == (24, 1024, N_REAL_VOCAB, 262_144)
    tensors = read_header(wide).tensors
    for name, expected in expected_tensors(shape).items():
        assert tensors[name].shape == expected, name

    ids = wide_ids(wide)
    for difference in compare(small, wide, ids, text_windows(shipped, 1, 68)):
        assert difference.n_rows >= 64
        assert difference.mean_kl < 1e-3, f"depth {difference.depth}"
        assert difference.max_padding < 1e-6

    with Vocab(shipped) as vocab:
        counts = vocab.count(read_texts(TEXT))
    special = [i for i, kind in enumerate(SmallModel(shipped).types) if kind != 1]
    assert ids[special].tolist() == list(range(N_REAL_TEXT, N_REAL_TEXT + len(special)))
    for n in (1024, 8192, 32768):
        assert counts[ids < n].sum() / counts.sum() == pytest.approx(REAL_CURVE.share_below(n), abs=0.02)
