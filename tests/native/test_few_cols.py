"""Products of quantized and 16-bit rows with a few columns, on the CPU, against the kernels for one column."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from native.ggml import Ggml

Array = npt.NDArray[Any]

SIZES = [*range(1, 18), 20, 31, 32, 33, 40]


@pytest.fixture
def exact(ggml: Ggml) -> bool:
    """Whether the engine has the kernels; others may add up in another order."""
    return all(getattr(ggml.cpu, f"ggml_cpu_has_{what}")() for what in ("avx2", "fma", "f16c"))


def check(found: Array, wanted: Array, exact: bool) -> None:
    if exact:
        np.testing.assert_array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def columns(rng: np.random.Generator, n_cols: int, n: int) -> Array:
    """Columns of different sizes, one of them nothing but zeros."""
    made = rng.standard_normal((n_cols, n)).astype(np.float32) * np.logspace(-3, 2, n_cols, dtype=np.float32)[:, None]
    made[n_cols // 2] *= n_cols == 1
    return made


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(("n_rows", "n"), [(1, 256), (77, 512), (130, 2560)])
def test_q6_k(ggml: Ggml, n_rows: int, n: int, n_threads: int, exact: bool) -> None:
    rng = np.random.default_rng(n_rows)
    rows = ggml.quantized("Q6_K", rng.standard_normal((n_rows, n)).astype(np.float32))
    row_bytes = rows.data.nbytes // n_rows
    for n_cols in SIZES:
        y = columns(rng, n_cols, n)
        found = ggml.compute("ggml_mul_mat", rows.tensor, ggml.tensor(y)[0], shape=(n_cols, n_rows), n_threads=n_threads)
        if exact and n_cols > 32:
            continue  # another kernel of llama.cpp, which adds up in another order
        wanted = np.empty((n_cols, n_rows), np.float32)
        for c in range(n_cols):
            packed = (ctypes.c_char * (n // 256 * 292))()
            ggml.cpu.quantize_row_q8_K(y[c].ctypes.data_as(ctypes.c_void_p), packed, ctypes.c_int64(n))
            for r in range(n_rows):
                out = ctypes.c_float()
                at = ctypes.c_void_p(rows.data.ctypes.data + r * row_bytes)
                nothing = ctypes.c_size_t(0)
                ggml.cpu.ggml_vec_dot_q6_K_q8_K(n, ctypes.byref(out), nothing, at, nothing, packed, nothing, 1)
                wanted[c, r] = out.value
        check(found, wanted, exact)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("kind", ["F16", "BF16"])
@pytest.mark.parametrize(("n_rows", "n"), [(1, 128), (2, 256), (79, 384), (130, 2560)])
def test_16_bit_rows(ggml: Ggml, kind: str, n_rows: int, n: int, n_threads: int, exact: bool) -> None:
    rng = np.random.default_rng(n_rows)
    rows = ggml.quantized(kind, rng.standard_normal((n_rows, n)).astype(np.float32))
    name = {"F16": "fp16", "BF16": "bf16"}[kind]
    kernel, pack = getattr(ggml.cpu, f"ggml_vec_dot_{kind.lower()}"), getattr(ggml.cpu, f"ggml_cpu_fp32_to_{name}")
    for n_cols in SIZES:
        y = columns(rng, n_cols, n)
        found = ggml.compute("ggml_mul_mat", rows.tensor, ggml.tensor(y)[0], shape=(n_cols, n_rows), n_threads=n_threads)
        wanted = np.empty((n_cols, n_rows), np.float32)
        for c in range(n_cols):
            packed = (ctypes.c_char * (2 * n))()
            pack(y[c].ctypes.data_as(ctypes.c_void_p), packed, ctypes.c_int64(n))
            for r in range(n_rows):
                out, nothing = ctypes.c_float(), ctypes.c_size_t(0)
                at = ctypes.c_void_p(rows.data.ctypes.data + 2 * n * r)
                kernel(n, ctypes.byref(out), nothing, at, nothing, packed, nothing, 1)
                wanted[c, r] = out.value
        # more columns have another kernel of llama.cpp, which adds up in another order
        if exact and n_cols <= 32:
            check(found, wanted, exact)
        else:
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


# of interleaved rows: the kernel for one column, what packs a column, and the values and bytes of its blocks
INTERLEAVED = {
    "Q4_0": ("ggml_gemv_q4_0_8x8_q8_0", "quantize_row_q8_0", 32, 34),
    "Q4_K": ("ggml_gemv_q4_K_8x8_q8_K", "quantize_row_q8_K", 256, 292),
}


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(
    ("kind", "n_rows", "n"),
    [("Q4_0", 8, 32), ("Q4_0", 24, 96), ("Q4_0", 136, 1024), ("Q4_0", 16, 3584)]
    + [("Q4_K", 8, 256), ("Q4_K", 24, 768), ("Q4_K", 136, 1024), ("Q4_K", 16, 3584)],
)
def test_interleaved_rows(ggml: Ggml, kind: str, n_rows: int, n: int, n_threads: int, exact: bool) -> None:
    rng = np.random.default_rng(n_rows)
    kernel, pack, n_values, n_bytes = INTERLEAVED[kind]
    if not exact:
        pytest.skip("this processor interleaves rows in another way")
    rows = ggml.quantized(kind, rng.standard_normal((n_rows, n)).astype(np.float32) + 0.3, repacked=True)
    for n_cols in SIZES:
        y = columns(rng, n_cols, n)
        found = ggml.compute("ggml_mul_mat", rows.tensor, ggml.tensor(y)[0], shape=(n_cols, n_rows), n_threads=n_threads)
        wanted = np.empty((n_cols, n_rows), np.float32)
        for c in range(n_cols):
            packed = (ctypes.c_char * (n // n_values * n_bytes))()
            getattr(ggml.cpu, pack)(y[c].ctypes.data_as(ctypes.c_void_p), packed, ctypes.c_int64(n))
            out = wanted[c].ctypes.data_as(ctypes.c_void_p)
            getattr(ggml.cpu, kernel)(n, out, ctypes.c_size_t(n_rows), rows.address, packed, 1, n_rows)
        # llama.cpp's kernel for more columns adds up in another order where there are minima
        check(found, wanted, exact and (n_cols <= 32 or kind == "Q4_0"))


@pytest.mark.parametrize(("kind", "n"), [("Q6_K", 256), ("F16", 256), ("BF16", 256), ("F16", 96), ("BF16", 96)])
def test_other_products(ggml: Ggml, kind: str, n: int) -> None:
    """Of several planes, and of rows whose length has no kernel: are left to llama.cpp's own."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((9, n)).astype(np.float32)
    rows = ggml.quantized(kind, values)
    y = rng.standard_normal((2, 3, n)).astype(np.float32)
    both = ggml.compute("ggml_mul_mat", rows.tensor, ggml.tensor(y)[0], shape=(2, 3, 9))
    for plane in range(2):
        one = ggml.compute("ggml_mul_mat", rows.tensor, ggml.tensor(y[plane])[0], shape=(3, 9))
        np.testing.assert_allclose(both[plane], one, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one, y[plane] @ values.T, rtol=0.1, atol=0.1 * np.sqrt(n))
