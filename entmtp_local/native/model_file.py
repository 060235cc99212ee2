"""Check a model file before libllama opens it, and say what is in it.

Some wrong files end the process inside libllama, past any exception handler: an MTP block without its tensors, two
blocks where the architecture runs one, a hybrid model without recurrent layers. Here they become one sentence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from entmtp_local.errors import ModelFileError
from entmtp_local.native.architectures import (
    ASSISTANT_ARCH,
    ASSISTANT_TARGET,
    DELTA_NET_ARCHS,
    FILE_TYPES,
    HYBRID_ARCHS,
    INDEXED_ARCHS,
    NOT_GENERATING_ARCHS,
    RECURRENT_ARCHS,
)
from entmtp_local.native.gguf_header import GGUFHeader, Scalar, read_header
from entmtp_local.native.model_checks import Role, check_blocks, check_head, check_hyperparameters, check_vocabulary
from entmtp_local.native.model_metadata import Layers, ModelMetadata, read_layers
from entmtp_local.speculative.draft_vocab import PassCost

HeadKind: TypeAlias = Literal["single", "chained", "shared", "none"]
MemoryKind: TypeAlias = Literal["attention", "iswa", "hybrid", "recurrent", "other"]

KV_ELEMENT_BYTES = 2  # f16
STATE_ELEMENT_BYTES = 4  # recurrent states are f32

_BLOCK_NAME = re.compile(r"^blk\.(?P<block>\d+)\.")
_SPLIT_NAME = re.compile(r"^(?P<prefix>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a checked model file holds.

    n_layer counts the trunk, n_layer_nextn the MTP blocks that are in the file. n_embd_h is the width of the hidden
    row a head reads. window_layers and n_head_kv go through all blocks, head included; key_lengths are the key features
    of a head in layers without and with a sliding window. kv_bytes_per_token is the f16 key-value cache of one token
    over all attention layers, head included, and state_bytes the recurrent states of one sequence; n_window is how many
    tokens layers with a sliding window keep, 0 where there are none; node_bytes is what recurrent layers that verify trees
    keep per node of a tree, 0 for those that store whole states; pass_bytes is what passes of few tokens read of the file.
    size_bytes and n_tensors count all n_parts files, n_parameters the elements of all tensors.
    """

    path: Path
    arch: str
    name: str
    n_layer: int
    n_layer_nextn: int
    n_embd: int
    n_embd_h: int
    n_vocab: int
    n_ctx_train: int
    quantisation: str
    size_bytes: int
    n_tensors: int
    n_parameters: int
    n_parts: int
    has_mtp: bool
    is_sidecar: bool
    head_kind: HeadKind
    memory_kind: MemoryKind
    window_layers: tuple[bool, ...]
    key_lengths: tuple[int, int]
    n_head_kv: tuple[int, ...]
    chat_template: str | None
    sampling: Mapping[str, Scalar]
    kv_bytes_per_token: int
    state_bytes: int
    n_window: int
    node_bytes: int
    pass_bytes: PassCost


def read_model(path: Path, role: Role = "main") -> ModelInfo:
    """Check a GGUF model and describe it, without loading weights.

    Args:
        path: the file, or the first part of a split model.
        role: "main" for the model to run, "mtp" for a file given beside it that holds its head.
    Returns: the description; libllama can be given the file.
    Raises: ModelFileError, one sentence with what was found, what was wanted and what to do.
    """
    try:
        stat = path.stat()
    except OSError:
        return _read_model(path, role)  # says what is wrong with it
    return _read_unchanged(path, role, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _read_unchanged(path: Path, role: Role, _mtime_ns: int, _size: int) -> ModelInfo:
    # Commands look at a file before the session does, and a large vocabulary takes some tenths of a second.
    return _read_model(path, role)


def _read_model(path: Path, role: Role) -> ModelInfo:
    header = read_header(path)
    _check_is_language_model(header)
    headers = [header, *_other_parts(header)]
    tensors = {name: tensor for part in headers for name, tensor in part.tensors.items()}
    model = ModelMetadata(header, tensors)
    if not tensors:
        raise model.fail("it holds a vocabulary but no tensors; give the file with the weights")
    _check_parts(model, headers)
    layers = read_layers(model)
    check_hyperparameters(model, layers)
    n_vocab = check_vocabulary(model, header)
    n_nextn, is_sidecar = check_head(model, layers, role)
    check_blocks(model, layers, trunk=not is_sidecar, head=n_nextn > 0)

    n_embd = model.integer("embedding_length")
    return ModelInfo(
        path=path,
        arch=model.arch,
        name=model.text("general.name") or path.stem,
        n_layer=layers.n_trunk,
        n_layer_nextn=n_nextn,
        n_embd=n_embd,
        n_embd_h=model.integer("embedding_length_out", n_embd) or n_embd,
        n_vocab=n_vocab,
        n_ctx_train=model.integer("context_length"),
        quantisation=_quantisation(model),
        size_bytes=sum(part.size_bytes for part in headers),
        n_tensors=len(tensors),
        n_parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        n_parts=len(headers),
        has_mtp=n_nextn > 0,
        is_sidecar=is_sidecar,
        head_kind=_head_kind(model, n_nextn),
        memory_kind=_memory_kind(model, layers),
        window_layers=layers.window,
        key_lengths=_key_lengths(model, layers)[0],
        n_head_kv=layers.n_head_kv,
        chat_template=model.text("tokenizer.chat_template"),
        sampling=_sampling_defaults(model),
        kv_bytes_per_token=_kv_bytes_per_token(model, layers, n_nextn),
        state_bytes=_state_bytes(model, layers),
        n_window=model.integer("attention.sliding_window", 0) if any(layers.window) else 0,
        node_bytes=_node_bytes(model, layers),
        pass_bytes=_pass_bytes(model, layers, n_vocab),
    )


def check_pair(target: ModelInfo, mtp: ModelInfo) -> None:
    """Check that a head in its own file fits the model it is to draft for.

    Args:
        target: the main model.
        mtp: the file given as its head, read with role "mtp".
    Raises: ModelFileError when the architectures, widths, layers or vocabularies differ.
    """

    def differ(what: str, found: object, wanted: object) -> ModelFileError:
        return ModelFileError(
            f"MTP file {mtp.path} does not fit model {target.path}: {what} is {found}, the model has {wanted}; give the "
            "head that was converted from the same model."
        )

    if mtp.arch == ASSISTANT_ARCH:
        if target.arch != ASSISTANT_TARGET:
            raise differ("its target's architecture", ASSISTANT_TARGET, target.arch)
        if mtp.n_embd_h != target.n_embd:
            raise differ("its target's embedding length", mtp.n_embd_h, target.n_embd)
        if mtp.key_lengths != target.key_lengths:
            raise differ("its key features a head", mtp.key_lengths, target.key_lengths)
        shared = {i: target.n_head_kv[-2 if window else -1] for i, window in enumerate(mtp.window_layers)}
        if any(mtp.n_head_kv[i] != n for i, n in shared.items()):
            raise differ("its number of key-value heads", mtp.n_head_kv, target.n_head_kv[-2:])
        if target.window_layers[-2:] != (True, False):
            raise differ("the kind of the last two layers", "unlike it", "no sliding-window layer before a full one")
    else:
        if mtp.arch != target.arch:
            raise differ("its architecture", mtp.arch, target.arch)
        if mtp.n_embd != target.n_embd:
            raise differ("its embedding length", mtp.n_embd, target.n_embd)
        if mtp.n_layer != target.n_layer:
            raise differ("its number of trunk layers", mtp.n_layer, target.n_layer)
    if mtp.n_vocab != target.n_vocab:
        raise differ("its vocabulary size", mtp.n_vocab, target.n_vocab)


def _check_is_language_model(header: GGUFHeader) -> None:
    path = header.path
    arch = header.metadata.get("general.architecture")
    kind = header.metadata.get("general.type", "model")
    if arch == "clip" or kind in ("mmproj", "clip-vision"):
        raise ModelFileError(f"{path} is a multimodal projector (mmproj), not a language model; give the model itself.")
    if kind == "adapter" or "adapter.type" in header.metadata:
        raise ModelFileError(f"{path} is a LoRA adapter, not a model; merge it into its base model first.")
    if kind == "imatrix" or arch == "imatrix":
        raise ModelFileError(f"{path} is an importance matrix, not a model; give the model file.")
    split_no = header.metadata.get("split.no", 0)
    if isinstance(split_no, int) and split_no > 0:
        first = _SPLIT_NAME.sub(lambda m: f"{m['prefix']}-00001-of-{m['count']}.gguf", path.name)
        raise ModelFileError(f"{path} is part {split_no + 1} of a split model; give the first part, {first}.")
    if not isinstance(arch, str) or not arch:
        raise ModelFileError(f"model file {path} does not name its architecture; convert the model again.")
    if arch in NOT_GENERATING_ARCHS:
        raise ModelFileError(f"{path} is a '{arch}' model, which does not generate text token by token; give another one.")


def _other_parts(header: GGUFHeader) -> Iterator[GGUFHeader]:
    """Headers of parts 2.. of a split model."""
    count = header.metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return
    match = _SPLIT_NAME.match(header.path.name)
    if match is None or int(match["count"]) != count:
        raise ModelFileError(
            f"model file {header.path} is the first of {count} parts, but its name does not end in "
            f"-00001-of-{count:05d}.gguf, so the others cannot be found; give it its original name."
        )
    for i in range(2, count + 1):
        part = header.path.with_name(f"{match['prefix']}-{i:05d}-of-{count:05d}.gguf")
        if not part.exists():
            raise ModelFileError(f"part {i} of {count} of the split model is missing: {part}; download it beside the others.")
        other = read_header(part)
        found = other.metadata.get("split.no")
        if found != i - 1:
            raise ModelFileError(f"{part} should be part {i} of {count}, but says it is index {found}; download it again.")
        yield other


def _check_parts(model: ModelMetadata, headers: list[GGUFHeader]) -> None:
    n_named = sum(len(part.tensors) for part in headers)
    if n_named != len(model.tensors):
        raise model.fail("two of its parts hold the same tensor; download them again")
    wanted = model.metadata.get("split.tensors.count")
    if len(headers) > 1 and wanted != n_named:
        raise model.fail(f"its {len(headers)} parts hold {n_named} tensors, {wanted} are announced; download them again")


def _head_kind(model: ModelMetadata, n_nextn: int) -> HeadKind:
    if model.arch == ASSISTANT_ARCH:
        return "shared"
    if n_nextn == 0:
        return "none"
    return "chained" if n_nextn > 1 else "single"


def _memory_kind(model: ModelMetadata, layers: Layers) -> MemoryKind:
    if model.arch in RECURRENT_ARCHS:
        return "recurrent"
    if model.arch in DELTA_NET_ARCHS:
        return "hybrid"
    if model.arch in HYBRID_ARCHS | INDEXED_ARCHS:
        return "other"
    return "iswa" if any(layers.window) else "attention"


def _quantisation(model: ModelMetadata) -> str:
    """The file type's name, or where it is absent the tensor type that takes the most bytes."""
    file_type = model.metadata.get("general.file_type")
    if isinstance(file_type, int) and file_type in FILE_TYPES:
        return FILE_TYPES[file_type]
    n_bytes: Counter[str] = Counter()
    for tensor in model.tensors.values():
        n_bytes[tensor.type_name] += tensor.n_bytes
    return n_bytes.most_common(1)[0][0]


def _sampling_defaults(model: ModelMetadata) -> dict[str, Scalar]:
    prefix = "general.sampling."
    return {
        key[len(prefix) :]: value
        for key, value in model.metadata.items()
        if key.startswith(prefix) and not isinstance(value, tuple)
    }


def _key_lengths(model: ModelMetadata, layers: Layers) -> tuple[tuple[int, int], tuple[int, int]]:
    """Features a head of keys and of values, each for layers without and with a sliding window."""
    default = model.integer("embedding_length") // max(*layers.n_head, 1)
    key, value = (model.integer(f"attention.{name}_length", default) for name in ("key", "value"))
    return (
        (key, model.integer("attention.key_length_swa", key)),
        (value, model.integer("attention.value_length_swa", value)),
    )


def _kv_bytes_per_token(model: ModelMetadata, layers: Layers, n_nextn: int) -> int:
    (key, key_swa), (value, value_swa) = _key_lengths(model, layers)
    if model.integer("attention.key_length_mla", 0):
        value = value_swa = 0  # the latent row serves as key and value
    total = 0
    for i in range(layers.n_trunk + n_nextn):
        if (layers.recurrent[i] and model.arch != "falcon-h1") or model.arch == ASSISTANT_ARCH:
            continue
        width = key_swa + value_swa if layers.window[i] else key + value
        total += layers.n_head_kv[i] * width * KV_ELEMENT_BYTES
    return total


def _state_bytes(model: ModelMetadata, layers: Layers) -> int:
    """Convolution window and state of every recurrent layer; Source: llama_hparams::n_embd_r and n_embd_s."""
    n_recurrent = sum(layers.recurrent[: layers.n_trunk])
    if n_recurrent == 0:
        return 0
    n_embd = model.integer("embedding_length")
    n_conv = max(model.integer("ssm.conv_kernel", 0) - 1, 0)
    head_size, kda = model.integer("wkv.head_size", 0), model.integer("kda.head_dim", 0)
    if head_size:
        n = model.integer("token_shift_count", 2) * n_embd + n_embd * head_size
    elif kda:
        n = (3 * n_conv + kda) * kda * max(layers.n_head)
    else:
        inner, state = model.integer("ssm.inner_size", 0), model.integer("ssm.state_size", 0)
        n = n_conv * (inner + 2 * model.integer("ssm.group_count", 0) * state) + state * inner
    return n_recurrent * n * STATE_ELEMENT_BYTES


def _node_bytes(model: ModelMetadata, layers: Layers) -> int:
    """Inputs of one node to every recurrent layer, in F32: updates, keys, decays, and the convolution's row.

    Source: llama_entmtp_rs::reserve.
    """
    if model.arch not in DELTA_NET_ARCHS:
        return 0
    inner, state = model.integer("ssm.inner_size", 0), model.integer("ssm.state_size", 0)
    keys, heads = model.integer("ssm.group_count", 0) * state, model.integer("ssm.time_step_rank", 0)
    stored_keys = inner if model.arch == "qwen3next" else keys
    return 4 * sum(layers.recurrent[: layers.n_trunk]) * (inner + stored_keys + heads + inner + 2 * keys)


def _pass_bytes(model: ModelMetadata, layers: Layers, n_vocab: int) -> PassCost:
    """Of a mixture's experts, those count that a token is sent to."""
    n_experts, n_used = model.integer("expert_count", 0), model.integer("expert_used_count", 0)
    blocks = {False: 0.0, True: 0.0}  # trunk, first MTP block
    for name, tensor in model.tensors.items():
        match = _BLOCK_NAME.match(name)
        if match and (i := int(match["block"])) <= layers.n_trunk:
            share = n_used / n_experts if n_experts and "_exps" in name else 1.0
            blocks[i == layers.n_trunk] += share * tensor.n_bytes
    tensors = model.tensors
    output = tensors.get("output.weight") or tensors.get("token_embd.weight")
    own = f"blk.{layers.n_trunk}.nextn.shared_head_head.weight"
    head = tensors.get(own) or output
    for name in (own, f"blk.{layers.n_trunk}.nextn.embed_tokens.weight"):
        blocks[True] -= tensors[name].n_bytes if name in tensors else 0
    return PassCost(
        target=round(blocks[False]) + (output.n_bytes if output else 0),
        level=max(0, round(blocks[True])),
        row=head.n_bytes / n_vocab if head else 0.0,
    )
