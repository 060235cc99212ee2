"""The tensor shapes of the public Qwen3.5 models, and shapes from a JSON file.

Where the numbers come from (public pages, read in November 2026):

| number | 0.8b | 4b | 9b | 27b | source |
|---|---|---|---|---|---|
| n_layer | 24 | 32 | 32 | 64 | llama.cpp src/models/qwen35.cpp, the switch over n_layer() |
| n_embd | 1024 | 2560 | 4096 | 5120 | the same switch for 0.8b and 4b; Qwen/Qwen3.5-27B model card; 9b: (a) |
| n_ff | 3584 | 9216 | 12288 | 17408 | (b), (c), (a), (b) |
| n_head / n_head_kv | 8/2 | 16/4 | 16/4 | 24/4 | (b), (d), (a), (b) |
| delta-net key / value heads | 16/16 | 16/32 | 16/32 | 16/48 | (e), (c), (a), (f) |
| n_vocab | 248320 | 248320 | 248320 | 248320 | (b) and the 27B model card ("248320 (Padded)") |
| tied embeddings | yes | yes | no | no | (b) for 0.8b and 27b; (g) for 4b, 9b and 27b |

(a) the GGUF metadata of the 9B as printed at lzwjava.github.io/qwen3-5-9b-hybrid-review-en, equal to the copy of its
config.json in huggingface.co/khtsly/Mini-Coder; (b) github.com/THUDM/slime scripts/models/qwen3.5-{0.8B,27B}.sh;
(c) huggingface.co/halen214/st01 config.json (a fine-tune of the 4B); (d) the 4B's architecture file of
github.com/ave-veritas-et-enodatio/go-inference-lab-bench (models/arch/qwen35.arch.toml: 32 layers, 16Q/4KV, tied);
(e) huggingface.co/oopere/Qwen3.5-0.65B-Base-Rearchitected config.json (the 0.8B with four layers taken out);
(f) docs.modular.com max.pipelines.architectures.qwen3_5 (its defaults are the 27B's); (g) github.com/pegainfer-project/pegainfer
pull request 544. Equal in all sizes: attention heads of 256, rotary 64, delta-net state 128, convolution 4, full attention in
every fourth layer, one MTP block, 262,144 tokens of context. `n_parameters` of each shape is checked against the model's name.

This module knows numbers only: nothing of files or weights.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

from entmtp_local.errors import UsageError

HEAD_DIM = 256
STATE_DIM = 128
CONV_KERNEL = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """What a wide file's tensors measure. n_layer counts the trunk; one MTP block comes on top."""

    name: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_key_heads: int  # delta-net
    n_value_heads: int  # delta-net
    n_vocab: int
    tied: bool
    n_ctx_train: int = 262_144
    attention_interval: int = 4  # every fourth layer attends fully
    head_dim: int = HEAD_DIM
    state_dim: int = STATE_DIM
    conv_kernel: int = CONV_KERNEL

    def is_recurrent(self, layer: int) -> bool:
        """Whether a trunk layer is a delta net (llama.cpp's rule)."""
        return (layer + 1) % self.attention_interval != 0

    @property
    def key_dim(self) -> int:
        return self.n_key_heads * self.state_dim

    @property
    def value_dim(self) -> int:
        return self.n_value_heads * self.state_dim

    @property
    def n_parameters(self) -> int:
        """Weights of trunk, MTP block, embedding and, where it is its own matrix, output."""
        d, attention_dim = self.n_embd, self.n_head * self.head_dim
        ffn = 3 * d * self.n_ff + 2 * d
        attention = d * (3 * attention_dim + 2 * self.n_head_kv * self.head_dim) + 2 * self.head_dim
        channels = 2 * self.key_dim + self.value_dim
        delta = d * (channels + 2 * self.value_dim + 2 * self.n_value_heads)
        delta += channels * self.conv_kernel + 2 * self.n_value_heads + self.state_dim
        n_recurrent = sum(self.is_recurrent(layer) for layer in range(self.n_layer))
        trunk = n_recurrent * (delta + ffn) + (self.n_layer - n_recurrent) * (attention + ffn)
        head = attention + ffn + 2 * d * d + 3 * d
        return trunk + head + self.n_vocab * d * (1 if self.tied else 2) + d


_N_VOCAB = 248_320

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qwen3.5-0.8b", 24, 1024, 3584, 8, 2, 16, 16, _N_VOCAB, tied=True),
        Shape("qwen3.5-4b", 32, 2560, 9216, 16, 4, 16, 32, _N_VOCAB, tied=True),
        Shape("qwen3.5-9b", 32, 4096, 12288, 16, 4, 16, 32, _N_VOCAB, tied=False),
        Shape("qwen3.5-27b", 64, 5120, 17408, 24, 4, 16, 48, _N_VOCAB, tied=False),
    )
}


def get_shape(name: str, *, n_layer: int | None = None, n_vocab: int | None = None) -> Shape:
    """A named shape or one from a JSON file with Shape's fields.

    Args:
        name: one of SHAPES, or the path of a .json file; there, "name" and the fields with defaults may be missing.
        n_layer: trunk layers instead of the shape's own: a cheaper file whose layers cost the same.
        n_vocab: vocabulary instead of the shape's own.
    Raises: UsageError when there is no such shape or a field is wrong.
    """
    shape = _from_json(Path(name)) if name.endswith(".json") else SHAPES.get(name)
    if shape is None:
        raise UsageError(f"there is no shape '{name}'; give a .json file or one of {', '.join(SHAPES)}.")
    changes: dict[str, int] = {}
    if n_layer is not None:
        changes["n_layer"] = n_layer
    if n_vocab is not None:
        changes["n_vocab"] = n_vocab
    shape = replace(shape, **changes)  # type: ignore[arg-type]
    _check(shape)
    return shape


def _from_json(path: Path) -> Shape:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"the shape {path} cannot be read: {error}.") from error
    known = {field.name: field for field in fields(Shape)}
    if not isinstance(values, dict):
        raise UsageError(f"the shape {path} is no JSON object; its fields are {', '.join(known)}.")
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UsageError(f"the shape {path} has the unknown field '{unknown[0]}'; the fields are {', '.join(known)}.")
    values.setdefault("name", path.stem)
    missing = [name for name, field in known.items() if field.default is MISSING and name not in values]
    if missing:
        raise UsageError(f"the shape {path} is incomplete: it lacks {', '.join(missing)}.")
    return Shape(**values)


def _check(shape: Shape) -> None:
    for field in fields(shape):
        value = getattr(shape, field.name)
        if field.name not in ("name", "tied") and (not isinstance(value, int) or value < 1):
            raise UsageError(f"the shape {shape.name} has {field.name} = {value!r}; it has to be a positive whole number.")
    for many, few in (("n_head", "n_head_kv"), ("n_value_heads", "n_key_heads")):
        if getattr(shape, many) % getattr(shape, few):
            raise UsageError(
                f"the shape {shape.name} has {many} = {getattr(shape, many)}, which is no multiple of "
                f"{few} = {getattr(shape, few)}."
            )
    if shape.n_embd % 32 or shape.n_ff % 32:
        raise UsageError(f"the shape {shape.name} needs n_embd and n_ff that are multiples of 32.")
