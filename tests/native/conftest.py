"""Tiny models and bare contexts for the tests of the engine."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from native.ggml import Ggml

from entmtp_local.native import api as native
from entmtp_local.native import library
from entmtp_local.native.log import LogCapture
from scripts.make_tiny_models import main as make_tiny_models

SEQ = 0


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with one tiny model of each kind."""
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_models(folder)
    return folder


def ints(values: Sequence[int]) -> npt.NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


class Bench:
    """A model with bare contexts: the C functions as they are, no session on top."""

    def __init__(self, path: Path, *, mtp: bool = False, **params: Any) -> None:
        self.llama: Any = library.load()
        self.api = library.api()
        self.log = LogCapture(self.llama, verbose=False)
        model_params = self.llama.llama_model_default_params()
        model_params.load_mtp = mtp
        self.model = self.llama.llama_model_load_from_file(str(path).encode(), model_params)
        assert self.model, f"{path} does not load"
        self.contexts: list[Any] = []
        self.ctx = self.context(**params)
        self.n_vocab = self.llama.llama_vocab_n_tokens(self.llama.llama_model_get_vocab(self.model))

    def context(self, **params: Any) -> Any:
        values = {"n_ctx": 512, "n_batch": 256, "n_ubatch": 256, "n_seq_max": 1, "n_outputs_max": 256}
        values |= {"n_threads": 2, "n_threads_batch": 2, "swa_full": False}
        context_params = self.llama.llama_context_default_params()
        for name, value in (values | params).items():
            setattr(context_params, name, value)
        context = self.llama.llama_init_from_model(self.model, context_params)
        assert context
        self.contexts.append(context)
        if "n_rs_seq" not in params:
            assert self.api.reserve(context, 256) in (native.OK, native.UNSUPPORTED)
        return context

    def close(self) -> None:
        for context in reversed(self.contexts):
            self.llama.llama_free(context)
        self.llama.llama_model_free(self.model)

    # -- calls

    def decode(self, tokens: Sequence[int], parents: Sequence[int], outputs: Sequence[int] | None = None, ctx: Any = None) -> int:
        token, parent = ints(tokens), ints(parents)
        output = None if outputs is None else np.array(outputs, dtype=np.int8)
        return int(
            self.api.decode(
                ctx or self.ctx,
                SEQ,
                len(token),
                token.ctypes.data,
                parent.ctypes.data,
                None if output is None else output.ctypes.data,
            )
        )

    def commit(self, node: int, ctx: Any = None) -> int:
        return int(self.api.commit(ctx or self.ctx, SEQ, node))

    def feed(self, tokens: Sequence[int], ctx: Any = None) -> npt.NDArray[np.float32]:
        """Decode tokens as an ordinary prompt; the logits of the last one."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        assert self.llama.llama_decode(ctx or self.ctx, self.llama.llama_batch_get_one(array, len(tokens))) == 0
        return self.logits(len(tokens) - 1, ctx)

    def logits(self, row: int, ctx: Any = None) -> npt.NDArray[np.float32]:
        pointer = self.llama.llama_get_logits_ith(ctx or self.ctx, row)
        assert pointer
        return np.array(np.ctypeslib.as_array(pointer, shape=(self.n_vocab,)))

    def n_past(self, ctx: Any = None) -> int:
        memory = self.llama.llama_get_memory(ctx or self.ctx)
        return int(self.llama.llama_memory_seq_pos_max(memory, SEQ)) + 1

    def chain_logits(self, prompt: Sequence[int], path: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """Reference: the logits of each token of a path, one token at a time on an empty context."""
        self.api.clear(self.ctx)
        self.feed(prompt)
        rows = [self.feed([token]) for token in path]
        self.api.clear(self.ctx)
        return rows


@lru_cache(maxsize=1)
def _renamed_cpu() -> tuple[Any, ...]:
    """ggml's CPU device under another back end's name, first its address, then what must outlive the models on it."""
    lib = library.load().llama_cpp._lib
    by_type, reg_of = lib.ggml_backend_dev_by_type, lib.ggml_backend_dev_backend_reg
    by_type.restype = reg_of.restype = ctypes.c_void_p
    by_type.argtypes, reg_of.argtypes = [ctypes.c_int], [ctypes.c_void_p]
    cpu = by_type(0)
    reg = reg_of(cpu)

    def copy(address: int, n: int) -> Any:
        return (ctypes.c_void_p * n).from_buffer_copy((ctypes.c_void_p * n).from_address(address))

    name = ctypes.create_string_buffer(b"Other")
    get_name = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: ctypes.addressof(name))
    # struct ggml_backend_reg { int api_version; get_name, get_device_count, get_device, get_proc_address; void * context; }
    reg_copy = copy(reg, 6)
    reg_copy[1] = ctypes.cast(get_name, ctypes.c_void_p).value
    # struct ggml_backend_device { 15 functions; ggml_backend_reg_t reg; void * context; }
    device = copy(cpu, 17)
    assert device[15] == reg, "the struct has changed"
    device[15] = ctypes.addressof(reg_copy)
    return (ctypes.c_void_p * 2)(ctypes.addressof(device), None), device, reg_copy, get_name, name


@contextmanager
def other_back_end() -> Iterator[None]:
    """Models opened meanwhile lie on a device of a back end that knows neither trees nor the statistics of rows."""
    llama = library.load()
    defaults = llama.llama_model_default_params
    devices = _renamed_cpu()[0]

    def with_devices() -> Any:
        params = defaults()
        params.devices = ctypes.addressof(devices)
        return params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "llama_model_default_params", with_devices)
        yield


@pytest.fixture
def bench(tiny: Path) -> Iterator[Callable[..., Bench]]:
    opened: list[Bench] = []

    def open_bench(kind: str, **arguments: Any) -> Bench:
        opened.append(Bench(tiny / f"{kind}.gguf", **arguments))
        return opened[-1]

    yield open_bench
    for one in opened:
        one.close()


@pytest.fixture
def ggml() -> Iterator[Ggml]:
    instance = Ggml()
    yield instance
    instance.close()
