"""A model's metadata with typed access, and the per-layer numbers that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from entmtp_local.errors import ModelFileError
from entmtp_local.native.architectures import ASSISTANT_ARCH, DELTA_NET_ARCHS, HYBRID_ARCHS, RECURRENT_ARCHS, WINDOW_ARCHS
from entmtp_local.native.gguf_header import GGUFHeader, TensorInfo, Value

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS


@dataclass(frozen=True, slots=True)
class Layers:
    """Per-layer numbers of trunk and head, as `load_hparams` reads them."""

    n_all: int
    n_nextn: int
    n_head: tuple[int, ...]
    n_head_kv: tuple[int, ...]
    recurrent: tuple[bool, ...]
    window: tuple[bool, ...]

    @property
    def n_trunk(self) -> int:
        return self.n_all - self.n_nextn


class ModelMetadata:
    """A header with typed access; every complaint names the file."""

    def __init__(self, header: GGUFHeader, tensors: Mapping[str, TensorInfo]) -> None:
        self.path = header.path
        self.metadata: Mapping[str, Value] = header.metadata
        self.array_lengths = header.array_lengths
        self.tensors = tensors
        self.arch = self.text("general.architecture") or ""

    def fail(self, what: str) -> ModelFileError:
        return ModelFileError(f"model file {self.path} cannot be run: {what}.")

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str, default: int | None = None) -> int:
        """An architecture key's whole number; default None means that the key is required."""
        full = f"{self.arch}.{key}"
        value = self.metadata.get(full, default)
        if value is None:
            raise self.fail(f"metadata key '{full}' is missing, so the conversion is incomplete; get another one")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise self.fail(f"metadata key '{full}' is {shown(value)}, a whole number from 0 is needed")
        return value

    def integers(self, key: str, n: int, default: int | None = None) -> tuple[int, ...]:
        """A number per layer, stored as one for all or as an array of n."""
        full = f"{self.arch}.{key}"
        value = self.metadata.get(full)
        if isinstance(value, tuple):
            if len(value) != n:
                raise self.fail(f"metadata key '{full}' has {len(value)} entries, one for each of {n} layers is needed")
            if any(not isinstance(v, int) or not 0 <= v < 1 << 31 for v in value):
                raise self.fail(f"metadata key '{full}' holds something else than whole numbers from 0")
            return tuple(int(v) for v in value)
        if full in self.array_lengths:
            raise self.fail(f"metadata key '{full}' has {self.array_lengths[full]} entries, {n} are needed")
        return (self.integer(key, default),) * n

    def has(self, i: int, *names: str) -> bool:
        return all(f"blk.{i}.{name}" in self.tensors for name in names)


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_layers(model: ModelMetadata) -> Layers:
    n_all = model.integer("block_count")
    if not 0 < n_all <= MAX_LAYERS:
        raise model.fail(f"it has {n_all} blocks, 1 to {MAX_LAYERS} are supported")
    n_nextn = model.integer("nextn_predict_layers", 0)
    if n_nextn > n_all:
        raise model.fail(f"it announces {n_nextn} MTP blocks among {n_all} blocks")
    n_head = model.integers("attention.head_count", n_all, 0)
    n_head_kv = (
        model.integers("attention.head_count_kv", n_all)
        if f"{model.arch}.attention.head_count_kv" in (*model.metadata, *model.array_lengths)
        else n_head
    )
    return Layers(
        n_all=n_all,
        n_nextn=n_nextn,
        n_head=n_head,
        n_head_kv=n_head_kv,
        recurrent=tuple(_recurrent_layers(model, n_all, n_all - n_nextn, n_head_kv)),
        window=tuple(_window_layers(model, n_all)),
    )


def _recurrent_layers(model: ModelMetadata, n_all: int, n_trunk: int, n_head_kv: tuple[int, ...]) -> Iterable[bool]:
    if model.arch in RECURRENT_ARCHS:
        return [True] * n_all
    if model.arch in DELTA_NET_ARCHS:
        key = "attention.recurrent_layers"
        if f"{model.arch}.{key}" in (*model.metadata, *model.array_lengths):
            return [bool(flag) for flag in model.integers(key, n_all)]
        interval = model.integer("full_attention_interval", 4)
        if interval == 0:
            raise model.fail(f"metadata key '{model.arch}.full_attention_interval' is 0")
        return [i < n_trunk and (i + 1) % interval != 0 for i in range(n_all)]
    if model.arch in ("nemotron_h", "nemotron_h_moe"):
        n_ff = model.integers("feed_forward_length", n_all, 0)
        return [i < n_trunk and n_head_kv[i] == 0 and n_ff[i] == 0 for i in range(n_all)]
    if model.arch == "falcon-h1":
        return [True] * n_all
    if model.arch in HYBRID_ARCHS:
        return [i < n_trunk and n_head_kv[i] == 0 for i in range(n_all)]
    return [False] * n_all


def _window_layers(model: ModelMetadata, n_all: int) -> Iterable[bool]:
    if model.arch not in WINDOW_ARCHS | {ASSISTANT_ARCH} or not model.integer("attention.sliding_window", 0):
        return [False] * n_all
    key = f"{model.arch}.attention.sliding_window_pattern"
    pattern = model.metadata.get(key)
    if isinstance(pattern, tuple):
        if len(pattern) > MAX_LAYERS:
            raise model.fail(f"metadata key '{key}' has {len(pattern)} entries for {n_all} blocks")
        flags = [bool(flag) for flag in pattern[:n_all]]
        return flags + [False] * (n_all - len(flags))
    # a period: all but the last layer of each have a window; the default differs, which matters to no check
    period = pattern if isinstance(pattern, int) and pattern > 0 else 4
    return [(i + 1) % period != 0 for i in range(n_all)]
