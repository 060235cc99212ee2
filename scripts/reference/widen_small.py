"""The small model's file: its shape, its tokens and its tensors as numbers.

Does not know what they are widened to.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from entmtp_local.errors import ModelFileError
from scripts.reference.widen_shapes import Shape
from scripts.reference.widen_vocabulary import F32

ARCH = "qwen35"


class SmallModel:
    """A small GGUF of this architecture, its tensors as numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path} cannot be read as GGUF: {error}.") from error
        if self.field("general.architecture") != ARCH:
            raise ModelFileError(f"{path} has the architecture '{self.field('general.architecture')}', wanted '{ARCH}'.")
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.tokens: list[str] = self.field("tokenizer.ggml.tokens")
        self.types: list[int] = self.field("tokenizer.ggml.token_type")
        if self._number("nextn_predict_layers") != 1:
            raise ModelFileError(f"{path} has {self._number('nextn_predict_layers')} MTP blocks, wanted 1.")
        self.shape = self._shape()
        self.recurrent = tuple(f"blk.{i}.ssm_a" in self._tensors for i in range(self.shape.n_layer))

    def _shape(self) -> Shape:
        number = self._number
        return Shape(
            name=self.path.stem,
            n_layer=number("block_count") - 1,
            n_embd=number("embedding_length"),
            n_ff=number("feed_forward_length"),
            n_head=number("attention.head_count"),
            n_head_kv=number("attention.head_count_kv"),
            n_key_heads=number("ssm.group_count"),
            n_value_heads=number("ssm.time_step_rank"),
            n_vocab=len(self.tokens),
            tied="output.weight" not in self._tensors,
            n_ctx_train=number("context_length"),
            head_dim=number("attention.key_length"),
            state_dim=number("ssm.state_size"),
            conv_kernel=number("ssm.conv_kernel"),
        )

    def field(self, key: str) -> Any:
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    def fields(self) -> Iterator[tuple[str, Any, gguf.GGUFValueType, gguf.GGUFValueType | None]]:
        for key, field in self._reader.fields.items():
            if not key.startswith("GGUF."):
                kind = field.types[0]
                yield key, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None

    def _number(self, key: str) -> int:
        value = self.field(f"{ARCH}.{key}")
        if not isinstance(value, int):
            raise ModelFileError(f"{self.path} has {ARCH}.{key} = {value}, wanted one whole number.")
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    @property
    def names(self) -> set[str]:
        return set(self._tensors)

    def tensor(self, name: str) -> F32:
        """(rows, columns) or (n,) f32."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{self.path} has no tensor {name}.")
        return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)

    @property
    def output(self) -> F32:
        return self.tensor("token_embd.weight" if self.shape.tied else "output.weight")
