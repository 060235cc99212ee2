"""The operators of ggml, called one by one on NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from entmtp_local.native import library

Array = npt.NDArray[Any]

TYPE_F32, TYPE_I32 = 0, 26


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """A ggml context whose tensors are NumPy arrays."""

    def __init__(self) -> None:
        folder = library.engine_directory()
        self._base = ctypes.CDLL(str(next(folder.glob("libggml-base.so"))))
        self._cpu = ctypes.CDLL(str(next(folder.glob("libggml-cpu.so"))))
        for name in ("ggml_init", "ggml_new_tensor_4d", "ggml_new_graph", "ggml_get_data"):
            getattr(self._base, name).restype = ctypes.c_void_p
        for name in ("ggml_gated_delta_net_tree", "ggml_ssm_conv_tree", "ggml_row_stats"):
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

    def compute(self, name: str, *tensors: Any, shape: Sequence[int], n_threads: int = 2, dtype: Any = np.float32) -> Array:
        """The value of an operator."""
        result = ctypes.c_void_p(getattr(self._base, name)(self._ctx, *tensors))
        graph = ctypes.c_void_p(self._base.ggml_new_graph(self._ctx))
        self._base.ggml_build_forward_expand(graph, result)
        assert self._cpu.ggml_graph_compute_with_ctx(self._ctx, graph, n_threads) == 0
        return self.view(result, shape, dtype).copy()
