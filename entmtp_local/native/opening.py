"""Loads models and creates contexts for a session; one sentence where that cannot be."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entmtp_local.errors import EngineError, ModelFileError
from entmtp_local.native import api as native
from entmtp_local.native.checkpoints import MAX_BYTES
from entmtp_local.native.cores import physical_cores
from entmtp_local.native.log import LogCapture

_CONTEXT_TYPE_MTP = 1
#: Prompt tokens per pass: llama.cpp's own default. A sliding-window cache is larger than its window by at least this much,
#: which is what keeps rejected drafts from evicting cells that the committed tokens still need.
N_BATCH = 512
#: Recurrent states that are stored at most where nothing else takes rejected tokens back; one of a large model takes 150 MB.
MOST_STORED = 8


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What is fixed when a model is loaded."""

    model_path: Path
    mtp_path: Path | None = None  # a file with the MTP head, where the model's own file has none
    n_ctx: int = 4096  # tokens; 0 = what the model was trained for
    n_threads: int | None = None  # None = one per physical core
    n_gpu_layers: int | None = None  # None = all
    max_depth: int = 0  # deepest drafted node of the policies to come; 0 = decode plainly, do not load the MTP head
    max_nodes: int = 0  # most drafted nodes of a tree
    max_copied: int = 0  # longest text that is copied; trees with copied nodes have no more nodes than that and the root
    draft_vocab: int | None = None  # tokens that drafts choose from, counted from the first; 0 = all, None = by the text so far
    # The type of the rows of the output matrix that drafts read, as GGUF names it: SAME = as they are, None =
    # Q8_0 where they have 16 bits a weight.
    draft_head_type: str | None = None
    checkpoint_bytes: int = MAX_BYTES  # of main memory, for the states that it can go back to where tokens cannot be forgotten
    verbose: bool = False  # show llama.cpp's own log
    # Look for the best tokens of a tree's rows where the rows are computed; None = on a GPU, where that saves fetching the rows.
    # On a CPU it would only be more work: rows are read in place there, and only those on the accepted path.
    best_on_device: bool | None = None

    @property
    def max_tree(self) -> int:
        """Most nodes of a tree, the root included."""
        return max(self.max_nodes, self.max_copied) + 1


class Opener:
    """See the module. What it returns is the caller's to free.

    Args:
        llama: the llama_cpp module.
        n_ctx: tokens of context.
        log: of the library.
        stop: polled while a model is loaded; True ends it with a ModelFileError.
    """

    def __init__(
        self, llama: Any, api: native.Api, options: SessionOptions, n_ctx: int, log: LogCapture, stop: Callable[[], bool]
    ) -> None:
        self._llama, self._api, self._options = llama, api, options
        self._n_ctx, self._log, self._stop = n_ctx, log, stop

    def load(self, path: Path, *, has_head: bool) -> Any:
        """Load a model.

        Raises: ModelFileError.
        """
        params = self._llama.llama_model_default_params()
        params.load_mtp = self._options.max_depth > 0 and has_head
        if self._options.n_gpu_layers is not None:
            params.n_gpu_layers = self._options.n_gpu_layers
        # An exception cannot pass through the library: Ctrl-C has to be a flag that is asked for.
        progress = self._llama.llama_progress_callback(lambda _fraction, _user_data: not self._stop())
        params.progress_callback = progress
        model = self._llama.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise ModelFileError(
                f"llama.cpp cannot load {path}: {self._log.last_error()}; entmtp-local info {shlex.quote(str(path))} tells what "
                "it needs and what this machine has."
            )
        return model

    def target(self, model: Any) -> Any:
        """Create the context that verifies.

        Raises: EngineError.
        """
        if self._options.max_depth == 0:
            return self._create(model)
        if self._api.recurrent_trees(model):
            context = self._create(model)
            code = self._api.reserve(context, self._options.max_tree)
            if code == native.OK:
                return context
            self._llama.llama_free(context)
            if code != native.UNSUPPORTED:
                raise EngineError(
                    f"there is no memory for trees of {self._options.max_nodes} drafted tokens; "
                    "choose a smaller --policy or a smaller -c."
                )
        # recurrent layers go back to states that are stored at every token; other models store nothing
        return self._create(model, n_stored=min(self._options.max_depth, MOST_STORED))

    def drafter(self, model: Any, target: Any) -> Any:
        """Create the MTP context of a target's.

        Raises: EngineError.
        """
        return self._create(model, target=target)

    def _create(self, model: Any, *, target: Any = None, n_stored: int = 0) -> Any:
        options = self._options
        params = self._llama.llama_context_default_params()
        params.n_batch = params.n_ubatch = max(N_BATCH, 2 * (options.max_depth + 2))
        # llama.cpp cuts the batch down to a smaller context, and aborts when a chain that can be rolled back exceeds it
        params.n_ctx = max(self._n_ctx, params.n_batch)
        params.n_seq_max = 1
        params.n_outputs_max = options.max_tree
        params.n_threads = params.n_threads_batch = options.n_threads or physical_cores()
        params.no_perf = True
        params.swa_full = False
        if target is not None:
            params.ctx_type = _CONTEXT_TYPE_MTP
            params.ctx_other = target
        else:
            params.n_rs_seq = n_stored
        context = self._llama.llama_init_from_model(model, params)
        if not context:
            raise EngineError(
                f"llama.cpp cannot create a context of {self._n_ctx} tokens for {options.model_path}: "
                f"{self._log.last_error()}; try a smaller -c."
            )
        return context
