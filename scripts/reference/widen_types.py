"""Which GGUF type a tensor of a wide file gets, and rows of numbers in that type.

The mixtures are llama-quantize's rules for this architecture (src/llama-quant.cpp, llama_tensor_get_type_impl): the output
matrix, or the embedding where it serves as output, gets Q6_K in files of 4 and 5 bits; the _M mixtures give more bits to
some value projections and feed-forward outputs. This module does not know what the tensors are for beyond their names.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType

from entmtp_local.errors import EngineError, UsageError
from entmtp_local.native import library

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

# name -> (type of the matrices, value of general.file_type)
TYPES: dict[str, tuple[Type, FileType]] = {
    "F32": (Type.F32, FileType.ALL_F32),
    "F16": (Type.F16, FileType.MOSTLY_F16),
    "BF16": (Type.BF16, FileType.MOSTLY_BF16),
    "Q8_0": (Type.Q8_0, FileType.MOSTLY_Q8_0),
    "Q4_0": (Type.Q4_0, FileType.MOSTLY_Q4_0),
    "Q4_K": (Type.Q4_K, FileType.MOSTLY_Q4_K_S),
    "Q5_K": (Type.Q5_K, FileType.MOSTLY_Q5_K_S),
    "Q6_K": (Type.Q6_K, FileType.MOSTLY_Q6_K),
    "Q4_K_M": (Type.Q4_K, FileType.MOSTLY_Q4_K_M),
    "Q5_K_M": (Type.Q5_K, FileType.MOSTLY_Q5_K_M),
}
_FLOATS = (Type.F32, Type.F16, Type.BF16)
_WHERE_256_DOES_NOT_FIT = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}


@dataclass(frozen=True, slots=True)
class Mixture:
    """The types of one file. n_values counts the tensors named attn_v or attn_qkv, n_blocks all blocks, head included."""

    name: str
    n_values: int
    n_blocks: int
    tied: bool
    pure: bool = False

    def __post_init__(self) -> None:
        if self.name not in TYPES:
            raise UsageError(f"there is no type '{self.name}'; the types are {', '.join(TYPES)}.")

    @property
    def file_type(self) -> FileType:
        return TYPES[self.name][1]

    def of(self, name: str, shape: tuple[int, ...], i_value: int = 0, i_block: int = 0) -> Type:
        """The type of a tensor.

        Args:
            name: as in the GGUF.
            shape: rows, columns; or the length of a vector.
            i_value: which of the n_values tensors it is, for those.
            i_block: its block.
        """
        if len(shape) == 1 or name.endswith("_norm.weight") or "ssm_conv1d" in name:
            return Type.F32
        wanted = TYPES[self.name][0]
        if not self.pure and wanted not in _FLOATS:
            is_head = name == "output.weight" or (self.tied and name == "token_embd.weight")
            mixed = self.name.endswith("_M")
            if is_head and wanted != Type.Q8_0:
                wanted = Type.Q6_K if shape[1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0 else Type.Q8_0
            elif (
                mixed
                and ("attn_v.weight" in name or "attn_qkv.weight" in name)
                and _use_more_bits(i_value, self.n_values)
                or mixed
                and "ffn_down" in name
                and _use_more_bits(i_block, self.n_blocks)
            ):
                wanted = Type.Q6_K
        if shape[1] % gguf.GGML_QUANT_SIZES[wanted][0]:
            wanted = _WHERE_256_DOES_NOT_FIT.get(wanted, Type.F16)
        return wanted if shape[1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0 else Type.F16


def _use_more_bits(i: int, n: int) -> bool:
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def row_bytes(type: Type, n_columns: int) -> int:
    block, size = gguf.GGML_QUANT_SIZES[type]
    return n_columns // block * size


def pack(rows: F32, type: Type) -> U8:
    """Rows of numbers as GGUF stores them.

    Args:
        rows: (n_rows, n_columns) f32.
    Returns: (n_rows, row_bytes).
    Raises: EngineError when the type needs ggml's own quantiser and the engine is not there.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if type == Type.F32:
        return rows.view(np.uint8)
    if type == Type.F16:
        return rows.astype(np.float16).view(np.uint8)
    if type == Type.BF16:
        return np.asarray(gguf.quants.quantize(rows, type)).view(np.uint8).reshape(len(rows), -1)
    out = np.empty((len(rows), row_bytes(type, rows.shape[1])), dtype=np.uint8)
    n = _ggml().ggml_quantize_chunk(int(type), rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None)
    if n != out.nbytes:
        raise EngineError(f"ggml gave {n} bytes of {type.name} where {out.nbytes} were expected.")
    return out


@lru_cache(maxsize=1)
def _ggml() -> ctypes.CDLL:
    """The library with ggml's quantisers, which is part of the engine."""
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    name = "ggml-base.dll" if sys.platform == "win32" else f"libggml-base.{suffix}"
    path = library.engine_directory() / name
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"the engine's quantisers cannot be loaded ({error}); run scripts/setup.") from error
    # size_t ggml_quantize_chunk(type, const float * src, void * dst, int64_t start, int64_t nrows, int64_t n_per_row,
    #                            const float * imatrix)
    i64 = ctypes.c_int64
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, i64, i64, i64, ctypes.c_void_p]
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    return lib
