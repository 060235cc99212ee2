"""The operators of ggml, called one by one on NumPy arrays."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from entmtp_local.native import library

Array = npt.NDArray[Any]

TYPE_F32, TYPE_I32 = 0, 26
TYPES = {"F16": 1, "Q4_0": 2, "Q4_K": 12, "Q6_K": 14, "BF16": 30}


@dataclass(frozen=True)
class Quantized:
    """Rows of a quantized or 16-bit type."""

    tensor: Any
    data: Array  # as they were made, bytes
    address: Any  # as the tensor holds them, which may be interleaved


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """A ggml context whose tensors are NumPy arrays."""

    def __init__(self) -> None:
        folder = library.engine_directory()
        self._base = ctypes.CDLL(str(next(folder.glob("libggml-base.so"))))
        self.cpu = ctypes.CDLL(str(next(folder.glob("libggml-cpu.so"))))
        for name in ("ggml_init", "ggml_new_tensor_4d", "ggml_new_graph", "ggml_get_data", "ggml_backend_buft_alloc_buffer"):
            getattr(self._base, name).restype = ctypes.c_void_p
        for name in ("ggml_backend_buffer_get_base", "ggml_backend_reg_get_proc_address"):
            getattr(self._base, name).restype = ctypes.c_void_p
        self._base.ggml_backend_buft_name.restype = ctypes.c_char_p
        self._base.ggml_backend_buft_get_alloc_size.restype = ctypes.c_size_t
        self.cpu.ggml_backend_cpu_reg.restype = ctypes.c_void_p
        for name in ("ggml_gated_delta_net_tree", "ggml_ssm_conv_tree", "ggml_row_stats", "ggml_mul_mat"):
            getattr(self._base, name).restype = ctypes.c_void_p
        self._base.ggml_init.argtypes = [InitParams]
        self._ctx = ctypes.c_void_p(self._base.ggml_init(InitParams(1 << 28, None, False)))

    def close(self) -> None:
        self._base.ggml_free(self._ctx)

    def view(self, tensor: Any, shape: Sequence[int], dtype: Any) -> Array:
        data = self._base.ggml_get_data(tensor)
        n = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_char * n).from_address(data), dtype=dtype).reshape(shape)

    def tensor(self, values: Array) -> tuple[Any, Array]:
        """A tensor with these values, and the array that shares its memory. The last axis is ggml's first."""
        values = np.ascontiguousarray(values)
        sizes = (*reversed(values.shape), 1, 1, 1, 1)[:4]
        kind = TYPE_I32 if values.dtype == np.int32 else TYPE_F32
        made = self._base.ggml_new_tensor_4d(self._ctx, kind, *map(ctypes.c_int64, sizes))
        tensor = ctypes.c_void_p(made)
        array = self.view(tensor, values.shape, values.dtype)
        array[...] = values
        return tensor, array

    def quantized(self, kind: str, rows: Array, *, repacked: bool = False) -> Quantized:
        """Rows in a quantized type, interleaved as llama.cpp does it with weights if that is wanted."""
        n_rows, n = rows.shape
        sizes = [ctypes.c_int64(size) for size in (n, n_rows, 1, 1)]
        self._base.ggml_row_size.restype = ctypes.c_size_t
        data = np.empty(n_rows * self._base.ggml_row_size(TYPES[kind], ctypes.c_int64(n)), np.uint8)
        rows = np.ascontiguousarray(rows)
        self._base.ggml_quantize_chunk(
            TYPES[kind],
            rows.ctypes.data_as(ctypes.c_void_p),
            data.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(0),
            ctypes.c_int64(n_rows),
            ctypes.c_int64(n),
            None,
        )
        if not repacked:
            tensor = ctypes.c_void_p(self._base.ggml_new_tensor_4d(self._ctx, TYPES[kind], *sizes))
            address = ctypes.c_void_p(self._base.ggml_get_data(tensor))
            ctypes.memmove(address, data.ctypes.data, data.nbytes)
            return Quantized(tensor, data, address)
        kind_of_buffer = self._repacked()
        self._no_data = ctypes.c_void_p(self._base.ggml_init(InitParams(1 << 20, None, True)))
        tensor = ctypes.c_void_p(self._base.ggml_new_tensor_4d(self._no_data, TYPES[kind], *sizes))
        size = self._base.ggml_backend_buft_get_alloc_size(kind_of_buffer, tensor)
        buffer = ctypes.c_void_p(self._base.ggml_backend_buft_alloc_buffer(kind_of_buffer, ctypes.c_size_t(size)))
        address = ctypes.c_void_p(self._base.ggml_backend_buffer_get_base(buffer))
        assert self._base.ggml_backend_tensor_alloc(buffer, tensor, address) == 0
        at = data.ctypes.data_as(ctypes.c_void_p)
        self._base.ggml_backend_tensor_set(tensor, at, ctypes.c_size_t(0), ctypes.c_size_t(data.nbytes))
        return Quantized(tensor, data, address)

    def _repacked(self) -> Any:
        """The kind of buffer whose tensors are interleaved."""
        name = b"ggml_backend_dev_get_extra_bufts"
        registry = ctypes.c_void_p(self.cpu.ggml_backend_cpu_reg())
        get = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(
            self._base.ggml_backend_reg_get_proc_address(registry, name)
        )
        for kind in itertools.takewhile(bool, get(None)):
            if self._base.ggml_backend_buft_name(ctypes.c_void_p(kind)) == b"CPU_REPACK":
                return ctypes.c_void_p(kind)
        raise AssertionError("this engine does not interleave weights")

    def compute(self, name: str, *tensors: Any, shape: Sequence[int], n_threads: int = 2, dtype: Any = np.float32) -> Array:
        """The value of an operator."""
        result = ctypes.c_void_p(getattr(self._base, name)(self._ctx, *tensors))
        graph = ctypes.c_void_p(self._base.ggml_new_graph(self._ctx))
        self._base.ggml_build_forward_expand(graph, result)
        assert self.cpu.ggml_graph_compute_with_ctx(self._ctx, graph, n_threads) == 0
        return self.view(result, shape, dtype).copy()
