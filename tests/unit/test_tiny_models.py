"""The tiny models' files: same bytes from the same seed, a manifest that matches them, and what their weights promise."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from entmtp_local.native.model_file import check_pair, read_model
from scripts import make_tiny_models as tiny


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    tiny.main(out)
    return out


def test_the_same_seed_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    tiny.main(tmp_path, ["qwen35", "gemma4"])
    for name in ("qwen35.gguf", "gemma4.gguf", "gemma4-mtp.gguf"):
        assert digest(tmp_path / name) == digest(models / name)


def test_another_seed_gives_other_bytes(models: Path, tmp_path: Path) -> None:
    tiny.main(tmp_path, ["llama"], seed=tiny.DEFAULT_SEED + 1)
    assert digest(tmp_path / "llama.gguf") != digest(models / "llama.gguf")


def test_manifest_lists_every_file_and_what_is_in_it(models: Path) -> None:
    manifest = json.loads((models / "manifest.json").read_text(encoding="utf-8"))
    entries = manifest["models"]
    assert [entry["kind"] for entry in entries] == list(tiny.KINDS)
    files = {name for entry in entries for name in (entry["file"], entry["sidecar"]) if name}
    assert files == {path.name for path in models.glob("*.gguf")}
    for entry in entries:
        info = read_model(models / entry["file"])
        head_kind = info.head_kind
        if entry["sidecar"]:
            head = read_model(models / entry["sidecar"], "mtp")
            check_pair(info, head)
            assert not info.has_mtp
            head_kind = head.head_kind
        assert (entry["kind"], entry["head_kind"]) == (entry["kind"], head_kind)
        assert (entry["kind"], entry["memory_kind"]) == (entry["kind"], info.memory_kind)
        assert (info.arch, info.n_vocab, info.n_embd) == (entry["arch"], entry["n_vocab"], entry["n_embd"])
        assert info.chat_template == tiny.CHAT_TEMPLATE


def test_files_stay_small(models: Path) -> None:
    assert max(path.stat().st_size for path in models.glob("*.gguf")) < 5 << 20


@pytest.mark.parametrize("weight_type", tiny.TYPES)
def test_weight_types_are_written_and_named(tmp_path: Path, weight_type: str) -> None:
    tiny.main(tmp_path, ["qwen35moe"], weight_type=weight_type)
    assert read_model(tmp_path / "qwen35moe.gguf").quantisation == weight_type.upper()


def test_tokenizer_covers_every_byte_and_ends_with_the_special_tokens() -> None:
    tokenizer = tiny.make_tokenizer()
    assert len(tokenizer.tokens) == len(set(tokenizer.tokens)) == tiny.N_VOCAB
    assert tiny.N_VOCAB % 64 == 0
    assert tokenizer.tokens[ord("A")] == "A"
    for merge in tokenizer.merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= set(tokenizer.tokens)
    assert tokenizer.id("<|im_end|>") > tokenizer.id(tokenizer.merges[-1].replace(" ", ""))


def test_without_context_each_token_leads_to_another_and_only_stop_leads_to_the_end() -> None:
    tokenizer = tiny.make_tokenizer()
    embedding = tiny.embedding_rows(tiny.DEFAULT_SEED)
    output = tiny.output_rows(embedding, tokenizer, tiny.DEFAULT_SEED)
    successor = (embedding @ output.T).argmax(axis=1)  # (n_vocab,) greedy choice of a trunk without layers
    assert not np.any(successor == np.arange(tiny.N_VOCAB))
    end, stop, lead = tokenizer.id("<|im_end|>"), tokenizer.id(tiny.STOP), tokenizer.id(tiny.STOP_LEAD)
    assert np.flatnonzero(successor == end).tolist() == [stop]
    assert np.flatnonzero(successor == stop).tolist() == [lead]


def test_sidecar_and_trunk_hold_the_weights_of_the_whole_model() -> None:
    whole = tiny.make_model("qwen35").tensors
    trunk, head = tiny.make_model("qwen35-sidecar").tensors, tiny.make_sidecar("qwen35-sidecar")
    assert head is not None
    assert trunk.keys() | head.tensors.keys() == whole.keys()
    for part in (trunk, head.tensors):
        for name, data in part.items():
            np.testing.assert_array_equal(data, whole[name])


def test_less_noise_means_smaller_writes_into_the_residual_stream() -> None:
    quiet, loud = (tiny.make_model("glm4moe", noise=noise).tensors["blk.1.attn_output.weight"] for noise in (0.1, 0.4))
    np.testing.assert_allclose(quiet * 4, loud, rtol=1e-6)
    assert not loud[0].any()
