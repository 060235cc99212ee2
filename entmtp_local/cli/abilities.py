"""What can be drafted for a model and verified, as far as its file tells; a session asks the engine itself."""

from __future__ import annotations

from entmtp_local.native.model_file import ModelInfo

MEMORIES = {
    "attention": "key-value cache",
    "iswa": "key-value cache, partly of a sliding window",
    "hybrid": "key-value cache and recurrent states",
    "recurrent": "recurrent states",
    "other": "compressed or recurrent states of other kinds",
}

# Where states are stored at every token, each level of drafts makes every pass dearer: stock llama.cpp's own length is enough.
_DEFAULTS = {"trees": "throughput", "chains": "chain:3", "off": "off"}


def drafting(about: ModelInfo, head: ModelInfo) -> tuple[str, str]:
    """("trees", "chains" or "off", why)."""
    if not head.has_mtp:
        return "off", "the model has no MTP head, so tokens are decoded one by one"
    if head.head_kind == "chained":
        return "chains", "its MTP heads are trained for one depth each"
    if about.memory_kind in ("hybrid", "recurrent", "other") and not about.node_bytes:
        return "chains", f"the engine verifies chains only on its kind of memory ({MEMORIES[about.memory_kind]})"
    return "trees", "its head drafts any depth and the engine verifies trees on its kind of memory"


def default_policy(about: ModelInfo, head: ModelInfo) -> str:
    """The policy where `--policy` names none.

    Args:
        about: the model.
        head: the file with its MTP head, the model itself where that is no other.
    """
    return _DEFAULTS[drafting(about, head)[0]]
