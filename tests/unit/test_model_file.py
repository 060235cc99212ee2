"""Every refusal of a model file is one sentence that names it, and damaged files never raise anything else."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from entmtp_local.errors import ModelFileError
from entmtp_local.native import gguf_header
from entmtp_local.native.gguf_header import TENSOR_TYPES, read_header
from entmtp_local.native.model_file import ModelInfo, check_pair, read_model
from scripts import make_tiny_models as tiny

REMOVED = object()


def write(
    path: Path,
    kind: str = "qwen35",
    *,
    metadata: dict[str, Any] | None = None,
    without: Callable[[str], bool] = lambda name: False,
    sidecar: bool = False,
) -> Path:
    """Write a tiny model with changed metadata (full keys, or the architecture's without its prefix) and fewer tensors."""
    model = tiny.make_sidecar(kind) if sidecar else tiny.make_model(kind)
    assert model is not None
    for key, value in (metadata or {}).items():
        full = key if key.startswith(("general.", "tokenizer.", "split.", "adapter.")) else f"{model.arch}.{key}"
        if value is REMOVED:
            del model.metadata[full]
        else:
            model.metadata[full] = value
    model.tensors = {name: data for name, data in model.tensors.items() if not without(name)}
    tiny.write_model(model, path)
    return path


def refusal(path: Path, role: str = "main") -> str:
    with pytest.raises(ModelFileError) as caught:
        read_model(path, role)  # type: ignore[arg-type]
    sentence = str(caught.value)
    assert str(path) in sentence
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    return write(tmp_path / "qwen.gguf")


# ---------------------------------------------------------------------------------------------- what a good file says


def test_a_good_file_is_described(qwen: Path) -> None:
    info = read_model(qwen)
    assert (info.arch, info.name, info.n_layer, info.n_layer_nextn) == ("qwen35", "tiny qwen35", 4, 1)
    assert (info.has_mtp, info.is_sidecar, info.head_kind, info.memory_kind) == (True, False, "single", "hybrid")
    assert (info.n_embd, info.n_embd_h, info.n_vocab, info.n_ctx_train) == (128, 128, tiny.N_VOCAB, 4096)
    assert (info.quantisation, info.n_parts, info.size_bytes) == ("F32", 1, qwen.stat().st_size)
    assert info.n_tensors == len(tiny.make_model("qwen35").tensors)
    # 2 attention layers and the head's, 1 head of 64 keys and 64 values, 2 bytes each
    assert info.kv_bytes_per_token == 3 * 128 * 2
    # 2 delta-net layers: 3 convolution columns of 256 channels and 4 heads of 32 x 32, 4 bytes each
    assert info.state_bytes == 2 * (3 * 256 + 4 * 32 * 32) * 4
    # per layer: updates of 4 heads of 32, keys of 2 of them, 4 decays, 256 inputs of the convolution
    assert info.node_bytes == 2 * (4 * 32 + 2 * 32 + 4 + 256) * 4


def test_what_a_pass_reads(tmp_path: Path) -> None:
    """Everything but the input embedding; of a mixture's experts those in use; the head apart from its levels."""

    def n_bytes(model: tiny.TinyModel, *names: str, without: str = "none") -> int:
        tensors = model.tensors.items()
        return sum(4 * data.size for name, data in tensors if name.startswith(names) and without not in name)

    for arch in ("qwen35", "qwen35moe"):
        model = tiny.make_model(arch)
        found = read_model(write(tmp_path / f"{arch}.gguf", arch)).pass_bytes
        trunk = tuple(f"blk.{i}." for i in range(4))
        share = 1.0
        if arch == "qwen35moe":
            share = model.metadata[f"{arch}.expert_used_count"] / model.metadata[f"{arch}.expert_count"]
        experts = n_bytes(model, *trunk) - n_bytes(model, *trunk, without="_exps")
        head = n_bytes(model, "output.weight") or n_bytes(model, "token_embd.weight")
        assert found.target == round(n_bytes(model, *trunk, without="_exps") + share * experts) + head
        assert found.row == head / tiny.N_VOCAB
        experts = n_bytes(model, "blk.4.") - n_bytes(model, "blk.4.", without="_exps")
        assert found.level == round(n_bytes(model, "blk.4.", without="_exps") + share * experts)


def test_sampling_defaults_are_passed_on(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", metadata={"general.sampling.temp": 0.5, "general.sampling.top_k": 20})
    assert read_model(path).sampling == {"temp": 0.5, "top_k": 20}


def test_without_a_known_file_type_the_largest_share_names_the_quantisation(tmp_path: Path) -> None:
    model = tiny.make_model("llama")
    model.metadata["general.file_type"] = 1024
    tiny.write_model(model, tmp_path / "m.gguf", weight_type="q8_0")
    assert read_model(tmp_path / "m.gguf").quantisation == "Q8_0"


def test_a_missing_name_becomes_the_file_name(tmp_path: Path) -> None:
    path = write(tmp_path / "some model.gguf", metadata={"general.name": ""})
    assert read_model(path).name == "some model"


def test_windows_chained_and_shared_heads_are_told_apart(tmp_path: Path) -> None:
    step = read_model(write(tmp_path / "step.gguf", "step35"))
    assert (step.head_kind, step.memory_kind, step.n_layer_nextn) == ("chained", "iswa", 3)
    gemma = read_model(write(tmp_path / "gemma.gguf", "gemma4"))
    assistant = read_model(write(tmp_path / "assistant.gguf", "gemma4", sidecar=True), "mtp")
    assert (gemma.head_kind, gemma.window_layers) == ("none", (True, False, True, False))
    assert (assistant.head_kind, assistant.is_sidecar, assistant.n_embd_h) == ("shared", True, gemma.n_embd)


# ------------------------------------------------------------------------------------------------ not a readable model


def test_a_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.gguf")


def test_a_directory(tmp_path: Path) -> None:
    assert "directory" in refusal(tmp_path)


def test_a_name_the_system_cannot_look_up(tmp_path: Path) -> None:
    refusal(tmp_path / ("x" * 5000))


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.touch()
    assert "empty" in refusal(path)


def test_a_special_file(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert "not a regular file" in refusal(path)


def test_a_file_without_read_permission(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root reads everything, so chmod would not do
    assert "chmod" in refusal(qwen)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"ggjt", b"\0\0\0\0", b"<!do"])
def test_another_format(qwen: Path, start: bytes) -> None:
    qwen.write_bytes(start + qwen.read_bytes()[4:])
    assert "is not a GGUF file" in refusal(qwen)


@pytest.mark.parametrize("version", [0x03000000, 0x02000000])
def test_the_other_endianness(qwen: Path, version: int) -> None:
    qwen.write_bytes(b"GGUF" + struct.pack("<I", version) + qwen.read_bytes()[8:])
    assert "big-endian" in refusal(qwen)


@pytest.mark.parametrize("version", [1, 4, 255])
def test_another_version(qwen: Path, version: int) -> None:
    qwen.write_bytes(b"GGUF" + struct.pack("<I", version) + qwen.read_bytes()[8:])
    assert f"version {version}" in refusal(qwen)


def test_truncated_in_the_weights(qwen: Path) -> None:
    qwen.write_bytes(qwen.read_bytes()[:-100])
    assert "incomplete" in refusal(qwen)


@pytest.mark.parametrize("n_bytes", [5, 20, 24, 300, 3000, 12000])
def test_truncated_in_the_header(qwen: Path, n_bytes: int) -> None:
    qwen.write_bytes(qwen.read_bytes()[:n_bytes])
    assert "damaged" in refusal(qwen)


@pytest.mark.parametrize("offset", [8, 16])
@pytest.mark.parametrize("count", [10**6, 2**63, 2**64 - 1])
def test_counts_beyond_the_file_are_not_believed(qwen: Path, offset: int, count: int) -> None:
    data = bytearray(qwen.read_bytes())
    struct.pack_into("<Q", data, offset, count)
    qwen.write_bytes(data)
    assert "damaged" in refusal(qwen)


@pytest.mark.parametrize("length", [2**22, 2**40, 2**64 - 1])
def test_lengths_beyond_the_file_are_not_believed(qwen: Path, length: int) -> None:
    data = bytearray(qwen.read_bytes())
    for key, skip in ((b"general.architecture", 4), (b"tokenizer.ggml.tokens", 8), (b"tokenizer.ggml.token_type", 8)):
        damaged = bytearray(data)
        struct.pack_into("<Q", damaged, data.index(key) + len(key) + skip, length)
        qwen.write_bytes(damaged)
        assert "damaged" in refusal(qwen)


def test_a_header_longer_than_the_first_read_is_read_to_its_end(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_header(qwen)
    monkeypatch.setattr(gguf_header, "_FIRST_READ", 100)
    assert read_header(qwen) == whole


def test_tensor_type_table_agrees_with_the_gguf_package() -> None:
    for kind, (block, n_bytes) in gguf.GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":  # never stored; the package counts its scales as f32
            entry = TENSOR_TYPES[kind.value]
            assert (entry.name, entry.block, entry.n_bytes) == (kind.name, block, n_bytes)


def test_a_tensor_that_occurs_twice(qwen: Path) -> None:
    data = qwen.read_bytes()
    qwen.write_bytes(data.replace(b"blk.1.attn_k.weight", b"blk.1.attn_q.weight", 1))
    assert "occurs twice" in refusal(qwen)


def test_a_tensor_of_an_unknown_type(qwen: Path) -> None:
    data = bytearray(qwen.read_bytes())
    name = b"token_embd.weight"
    struct.pack_into("<I", data, data.index(name) + len(name) + 4 + 16, 4)
    qwen.write_bytes(data)
    assert "unknown type 4" in refusal(qwen)


# ---------------------------------------------------------------------------------------------- another kind of file


def test_a_projector(tmp_path: Path) -> None:
    assert "mmproj" in refusal(write(tmp_path / "m.gguf", metadata={"general.type": "mmproj"}))


def test_an_adapter(tmp_path: Path) -> None:
    assert "adapter" in refusal(write(tmp_path / "m.gguf", metadata={"general.type": "adapter"}))
    assert "adapter" in refusal(write(tmp_path / "n.gguf", metadata={"adapter.type": "lora"}))


def test_an_embedding_model(tmp_path: Path) -> None:
    model = tiny.make_model("llama")
    model.arch = "bert"
    tiny.write_model(model, tmp_path / "m.gguf")
    assert "does not generate text" in refusal(tmp_path / "m.gguf")


def test_a_vocabulary_without_weights(tmp_path: Path) -> None:
    assert "no tensors" in refusal(write(tmp_path / "m.gguf", without=lambda name: True))


def test_a_model_without_a_vocabulary(tmp_path: Path) -> None:
    assert "no vocabulary" in refusal(write(tmp_path / "m.gguf", metadata={"tokenizer.ggml.tokens": REMOVED}))


def test_equal_vocabulary_entries_that_would_end_the_process(tmp_path: Path) -> None:
    tokens = list(tiny.make_tokenizer().tokens)
    tokens[300] = tokens[301]
    assert "occur twice" in refusal(write(tmp_path / "m.gguf", metadata={"tokenizer.ggml.tokens": tokens}))


# ------------------------------------------------------------------------------------------------------------- heads


def test_a_head_alone_is_not_a_model(tmp_path: Path) -> None:
    sidecar = write(tmp_path / "head.gguf", "qwen35-sidecar", sidecar=True)
    assert "--mtp-model" in refusal(sidecar)
    assistant = write(tmp_path / "assistant.gguf", "gemma4", sidecar=True)
    assert "--mtp-model" in refusal(assistant)


def test_a_model_without_a_head_is_not_a_head(tmp_path: Path) -> None:
    assert "no MTP head" in refusal(write(tmp_path / "m.gguf", "llama"), "mtp")
    assert "no MTP head" in refusal(write(tmp_path / "n.gguf", "qwen35-sidecar"), "mtp")


@pytest.mark.parametrize("name", ["nextn.eh_proj", "nextn.enorm", "nextn.hnorm", "attn_norm", "attn_k"])
@pytest.mark.parametrize("kind", ["qwen35", "glm4moe"])
def test_an_incomplete_head_names_what_is_missing(tmp_path: Path, kind: str, name: str) -> None:
    i = 4 if kind == "qwen35" else 3
    missing = f"blk.{i}.{name}.weight"
    assert missing in refusal(write(tmp_path / "m.gguf", kind, without=lambda tensor: tensor == missing))


def test_a_second_chained_head_that_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "step35", without=lambda name: name.startswith("blk.4."))
    assert "blk.4.nextn.eh_proj.weight" in refusal(path)


def test_an_announced_head_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "qwen35", without=lambda name: name.startswith("blk.4."))
    assert "none is in it" in refusal(path)
    # these architectures load such a file, as the trunk of a pair
    trunk = read_model(write(tmp_path / "n.gguf", "glm4moe", without=lambda name: name.startswith("blk.3.")))
    assert (trunk.has_mtp, trunk.head_kind, trunk.n_layer) == (False, "none", 3)


@pytest.mark.parametrize("kind", ["qwen35", "glm4moe", "qwen3next"])
def test_two_blocks_where_one_is_run(tmp_path: Path, kind: str) -> None:
    sentence = refusal(write(tmp_path / "m.gguf", kind, metadata={"nextn_predict_layers": 2}))
    assert "announces 2 MTP blocks" in sentence and "exactly 1" in sentence


def test_more_heads_than_blocks(tmp_path: Path) -> None:
    assert "announces 9 MTP blocks" in refusal(write(tmp_path / "m.gguf", metadata={"nextn_predict_layers": 9}))


def pair(tmp_path: Path) -> tuple[ModelInfo, ModelInfo]:
    trunk = write(tmp_path / "trunk.gguf", "qwen35-sidecar")
    head = write(tmp_path / "head.gguf", "qwen35-sidecar", sidecar=True)
    return read_model(trunk), read_model(head, "mtp")


def test_a_fitting_pair(tmp_path: Path) -> None:
    target, head = pair(tmp_path)
    check_pair(target, head)
    assert (target.has_mtp, head.has_mtp, head.n_layer) == (False, True, target.n_layer)


def test_pairs_that_do_not_fit(tmp_path: Path) -> None:
    target, head = pair(tmp_path)
    gemma = read_model(write(tmp_path / "gemma.gguf", "gemma4"))
    assistant = read_model(write(tmp_path / "assistant.gguf", "gemma4", sidecar=True), "mtp")
    check_pair(gemma, assistant)
    other_layers = write(tmp_path / "deep.gguf", "qwen35-sidecar", metadata={"block_count": 3})
    for bad_target, bad_head, what in (
        (gemma, head, "architecture"),
        (target, assistant, "architecture"),
        (read_model(other_layers), head, "trunk layers"),
    ):
        with pytest.raises(ModelFileError, match=what) as caught:
            check_pair(bad_target, bad_head)
        assert str(bad_head.path) in str(caught.value) and str(bad_target.path) in str(caught.value)


# ------------------------------------------------------------------------------- metadata that would end the process

BAD_METADATA = [
    ("qwen35", {"full_attention_interval": 1}, "no block is recurrent"),
    ("qwen35", {"full_attention_interval": 0}, "full_attention_interval"),
    ("qwen35", {"attention.recurrent_layers": [False] * 5, "full_attention_interval": REMOVED}, "no block is recurrent"),
    ("qwen35", {"ssm.group_count": 0}, "ssm.group_count"),
    ("qwen35", {"ssm.group_count": 3}, "value heads"),
    ("qwen35", {"ssm.inner_size": 100}, "inner size"),
    ("qwen35", {"rope.dimension_sections": [0, 0, 0, 0]}, "dimension_sections"),
    ("qwen35", {"attention.value_length": 32}, "differ"),
    ("qwen35", {"attention.layer_norm_rms_epsilon": -1.0}, "epsilon"),
    ("qwen35", {"attention.layer_norm_rms_epsilon": float("nan")}, "epsilon"),
    ("qwen35", {"rope.scaling.type": "spiral"}, "spiral"),
    ("qwen35", {"block_count": 0}, "blocks"),
    ("qwen35", {"block_count": 513, "nextn_predict_layers": 1}, "513 blocks"),
    ("qwen35", {"block_count": REMOVED}, "is missing"),
    ("qwen35", {"block_count": "five"}, "whole number"),
    ("qwen35", {"embedding_length": 0}, "embedding_length"),
    ("qwen35", {"context_length": 0}, "context_length"),
    ("glm4moe", {"attention.head_count_kv": 3}, "key-value heads"),
    ("glm4moe", {"attention.head_count_kv": [1, 1]}, "2 entries"),
    ("glm4moe", {"rope.dimension_count": 0}, "rotates 0"),
    ("glm4moe", {"rope.dimension_count": 128}, "rotates 128"),
    ("glm4moe", {"expert_used_count": 5}, "5 of 4 experts"),
    ("glm4moe", {"expert_used_count": 0}, "0 of 4 experts"),
    ("glm4moe", {"expert_count": 0, "expert_used_count": 0}, "expert_count is 0"),
    ("glm4moe", {"expert_group_count": 3}, "3 groups"),
    ("glm4moe", {"expert_gating_func": 9}, "gating function"),
    ("step35", {"rope.dimension_count": 30}, "multiple of 4"),
    ("step35", {"rope.dimension_count_swa": 1000}, "rotates 1000"),
    ("step35", {"attention.sliding_window_pattern": [False] * 6}, "sliding window"),
    ("gemma4", {"attention.shared_kv_layers": 3}, "share the cache"),
    ("deepseek2", {"attention.key_length": 97}, "latent rank"),
    ("deepseek2", {"attention.head_count_kv": 2}, "compressed attention has 1"),
    ("bailingmoe3", {"kda.gate_lower_bound": 0.0}, "gate bound"),
]


@pytest.mark.parametrize(("kind", "metadata", "what"), BAD_METADATA)
def test_metadata_that_would_end_the_process(tmp_path: Path, kind: str, metadata: dict[str, Any], what: str) -> None:
    assert what in refusal(write(tmp_path / "m.gguf", kind, metadata=metadata))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("qwen35", "blk.0.attn_qkv.weight"),
        ("qwen3next", "blk.2.attn_gate.weight"),
        ("step35", "blk.0.ffn_up.weight"),
        ("step35", "blk.1.ffn_down_exps.weight"),
        ("hy_v3", "blk.1.ffn_gate_shexp.weight"),
        ("mimo2", "blk.4.ffn_gate.weight"),
        ("nemotron_h_moe", "blk.0.ssm_conv1d.bias"),
    ],
)
def test_tensors_that_libllama_calls_optional_and_then_uses(tmp_path: Path, kind: str, name: str) -> None:
    assert name in refusal(write(tmp_path / "m.gguf", kind, without=lambda tensor: tensor == name))


# -------------------------------------------------------------------------------------------------------- split models


def write_split(tmp_path: Path, n_parts: int = 3) -> list[Path]:
    """Write the llama model in parts the way llama.cpp's gguf-split does: metadata in the first one."""
    model = tiny.make_model("llama")
    names = list(model.tensors)
    paths = []
    for i in range(n_parts):
        path = tmp_path / f"m-{i + 1:05d}-of-{n_parts:05d}.gguf"
        part = tiny.TinyModel(model.arch, model.name, model.seed, model.noise)
        part.metadata = dict(model.metadata) if i == 0 else {}
        part.metadata |= {"split.no": i, "split.count": n_parts, "split.tensors.count": len(names)}
        part.tensors = {name: model.tensors[name] for name in names[i::n_parts]}
        tiny.write_model(part, path)
        paths.append(path)
    return paths


def test_a_split_model_is_read_as_one(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    info = read_model(paths[0])
    assert (info.n_parts, info.n_tensors) == (3, len(tiny.make_model("llama").tensors))
    assert info.size_bytes == sum(path.stat().st_size for path in paths)


def test_split_models_with_parts_missing_damaged_or_exchanged(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    assert paths[0].name in refusal(paths[1])
    second = paths[1].read_bytes()
    paths[1].write_bytes(second[:-64])
    assert str(paths[1]) in _refusal_of(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    assert "should be part 2 of 3" in _refusal_of(paths[0])
    paths[1].unlink()
    assert "part 2 of 3" in _refusal_of(paths[0])
    paths[1].write_bytes(second)
    renamed = paths[0].rename(tmp_path / "renamed.gguf")
    assert "-00001-of-00003.gguf" in refusal(renamed)


def _refusal_of(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_model(path)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- fuzz


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_described_or_refused_and_nothing_else(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    original = write(tmp_path / "good.gguf", rng.choice(["qwen35", "step35", "gemma4"])).read_bytes()
    header_end = original.index(b"token_embd.weight") + 6000
    path = tmp_path / "bad.gguf"
    n_refused = 0
    for _ in range(100):
        data = bytearray(original)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.randrange(1, 4)):
                i = rng.randrange(header_end)
                data[i] = rng.choice([data[i] ^ (1 << rng.randrange(8)), 0, 255, rng.randrange(256)])
        path.write_bytes(data)
        try:
            info = read_model(path)
        except ModelFileError as error:
            assert str(path) in str(error)
            n_refused += 1
        else:
            assert info.n_tensors > 0
    assert n_refused > 30
