"""Refuse models that would end the process inside libllama: failed assertions, divisions by zero, missing pointers.

Each rule stands for a line of src/llama-model.cpp or src/models/*.cpp of the pinned llama.cpp. What libllama refuses by
itself with an error (a missing trunk tensor, a wrong shape, an unknown architecture) is left to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

from entmtp_local.errors import ModelFileError
from entmtp_local.native.architectures import (
    ASSISTANT_ARCH,
    DELTA_NET_ARCHS,
    DRAFT_ONLY_ARCHS,
    LATENT_ARCHS,
    MTP_ARCHS,
    MULTI_HEAD_ARCHS,
    SINGLE_HEAD_ARCHS,
    TRUNK_ONLY_ARCHS,
    UNROTATED_ARCHS,
)
from entmtp_local.native.gguf_header import TOKENS_KEY, GGUFHeader
from entmtp_local.native.model_metadata import Layers, ModelMetadata, shown

Role: TypeAlias = Literal["main", "mtp"]

MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS


def check_hyperparameters(model: ModelMetadata, layers: Layers) -> None:
    """Refuse what trips an assertion or a division by zero in libllama."""
    for key in ("embedding_length", "context_length"):
        if model.integer(key) == 0:
            raise model.fail(f"metadata key '{model.arch}.{key}' is 0")
    for key in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        epsilon = model.metadata.get(f"{model.arch}.attention.{key}", 0.0)
        if isinstance(epsilon, float) and not 0.0 <= epsilon < 1.0:
            raise model.fail(f"metadata key '{model.arch}.attention.{key}' is {epsilon}, a small positive number is needed")
    scaling = model.text(f"{model.arch}.rope.scaling.type") or "none"
    if scaling not in ("none", "linear", "yarn", "longrope"):
        raise model.fail(f"its rope scaling type is '{scaling}'; none, linear, yarn and longrope are supported")
    for i, (n_head, n_head_kv) in enumerate(zip(layers.n_head, layers.n_head_kv, strict=True)):
        if n_head_kv and (n_head == 0 or n_head % n_head_kv):
            raise model.fail(f"block {i} has {n_head} query heads, not a multiple of its {n_head_kv} key-value heads")
    _check_experts(model, layers)
    _check_head_sizes(model, layers)
    if model.arch in DELTA_NET_ARCHS:
        _check_delta_net(model)
    if model.arch == "bailingmoe3":
        bound = model.metadata.get("bailingmoe3.kda.gate_lower_bound")
        if not isinstance(bound, float) or not bound < 0.0 or model.metadata.get("bailingmoe3.kda.safe_gate", True) is not True:
            raise model.fail(f"its delta attention has the gate bound {shown(bound)}; a safe gate with a negative one is needed")
    if model.arch in DELTA_NET_ARCHS | {"nemotron_h_moe", "bailingmoe3"} and not any(layers.recurrent):
        raise model.fail(f"'{model.arch}' is a hybrid architecture, but no block is recurrent; get another conversion")
    if model.arch in ("gemma4", ASSISTANT_ARCH, "step35", "mimo2", "cohere2moe") and not any(layers.window):
        raise model.fail("no block has a sliding window, which its architecture needs; get another conversion")
    if model.arch == "gemma4":
        n_own = layers.n_all - model.integer("attention.shared_kv_layers", 0)
        if n_own < 2 or (n_own < layers.n_all and layers.window[n_own - 2 : n_own] != (True, False)):
            raise model.fail(
                f"its last {layers.n_all - n_own} blocks share the cache of two before them, one with a sliding window and one "
                "without, which are not there; get another conversion"
            )


def _check_experts(model: ModelMetadata, layers: Layers) -> None:
    n_expert = model.integer("expert_count", 0)
    n_used = max(model.integers("expert_used_count", layers.n_all, 0))
    if n_expert > MAX_EXPERTS or n_used > n_expert or (n_expert > 0 and n_used == 0):
        raise model.fail(f"it uses {n_used} of {n_expert} experts; 1 of up to {MAX_EXPERTS} are needed, or none of none")
    n_groups, n_groups_used = model.integer("expert_group_count", 0), model.integer("expert_group_used_count", 0)
    groups_fit = n_groups <= 1 or (n_expert % n_groups == 0 and 0 < n_groups_used < n_groups)
    if n_groups > 0 and (n_groups >= n_expert or not groups_fit):
        raise model.fail(f"it divides {n_expert} experts into {n_groups} groups and uses {n_groups_used} of them")
    gating = model.integer("expert_gating_func", 0)
    if gating > 4 or (gating == 0 and model.arch == "bailingmoe3"):
        raise model.fail(f"its expert gating function is number {gating}; 1 to 4 are known")
    if n_expert == 0 and model.arch in ("glm4moe", "qwen35moe", "nemotron_h_moe", "bailingmoe3"):
        raise model.fail(f"'{model.arch}' is a mixture-of-experts architecture, but expert_count is 0")


def _check_head_sizes(model: ModelMetadata, layers: Layers) -> None:
    first = layers.n_head[0]
    if first == 0:
        return
    default = model.integer("embedding_length") // first
    key_length = model.integer("attention.key_length", default)
    value_length = model.integer("attention.value_length", default)
    n_rot = model.integer("rope.dimension_count", key_length)
    if key_length == 0 or value_length == 0:
        raise model.fail(f"its attention heads have {key_length} key and {value_length} value features")
    key_length_swa = model.integer("attention.key_length_swa", key_length)
    n_rot_swa = model.integer("rope.dimension_count_swa", n_rot)
    step = 4 if model.arch == "step35" else 2  # step35 halves the number for layers without a window
    checks = [(n_rot, key_length, step)] + ([(n_rot_swa, key_length_swa, 2)] if any(layers.window) else [])
    for n, length, multiple in checks:
        if n > length or n % multiple or (n == 0 and model.arch not in UNROTATED_ARCHS):
            raise model.fail(f"it rotates {n} of {length} features a head; a multiple of {multiple} up to all is needed")
    is_mla = model.integer("attention.key_length_mla", 0) > 0
    if model.arch in MTP_ARCHS and not is_mla and key_length != value_length and model.arch not in ("step35", "mimo2"):
        raise model.fail(f"its key length {key_length} and value length {value_length} differ, '{model.arch}' needs equal ones")
    if model.arch in ("gemma4", ASSISTANT_ARCH) and (
        key_length != value_length or key_length_swa != model.integer("attention.value_length_swa", value_length)
    ):
        raise model.fail("its key and value heads differ in size, its architecture needs equal ones")
    if model.arch in LATENT_ARCHS and is_mla:
        rank = model.integer("attention.kv_lora_rank")
        if key_length != rank + n_rot or value_length != rank or model.integer("attention.key_length_mla") <= n_rot:
            raise model.fail(f"its cached rows of {key_length} features are not its latent rank {rank} and {n_rot} rotated ones")
        if not set(layers.n_head_kv) <= {0, 1}:
            raise model.fail(f"it has {max(layers.n_head_kv)} key-value heads, compressed attention has 1")
    if model.arch in ("cohere2moe", "hy_v3") and n_rot != key_length:
        raise model.fail(f"it rotates {n_rot} of {key_length} features a head, '{model.arch}' needs all")


def _check_delta_net(model: ModelMetadata) -> None:
    sizes = {
        key: model.integer(f"ssm.{key}") for key in ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count")
    }
    for key, value in sizes.items():
        if value == 0:
            raise model.fail(f"metadata key '{model.arch}.ssm.{key}' is 0")
    n_head, state = sizes["time_step_rank"], sizes["state_size"]
    if sizes["inner_size"] != n_head * state:
        raise model.fail(f"its delta-net has inner size {sizes['inner_size']}, {n_head} heads of {state} make {n_head * state}")
    if n_head % sizes["group_count"]:
        raise model.fail(f"its delta-net has {n_head} value heads, not a multiple of its {sizes['group_count']} key heads")
    if model.arch != "qwen3next" and not any(model.integers("rope.dimension_sections", 4)[:3]):
        raise model.fail(f"metadata key '{model.arch}.rope.dimension_sections' is all zero")


def check_vocabulary(model: ModelMetadata, header: GGUFHeader) -> int:
    n_tokens = model.array_lengths.get(TOKENS_KEY, 0)
    if n_tokens == 0:
        raise model.fail("it holds no vocabulary (tokenizer.ggml.tokens); get a complete conversion")
    if header.n_distinct_tokens != n_tokens:
        raise model.fail(
            f"{n_tokens - header.n_distinct_tokens} of its {n_tokens:,} vocabulary entries occur twice; get another conversion"
        )
    for key in ("scores", "token_type"):
        length = model.array_lengths.get(f"tokenizer.ggml.{key}", n_tokens)
        if length < n_tokens:
            raise model.fail(f"tokenizer.ggml.{key} has {length:,} entries for {n_tokens:,} tokens; get another conversion")
    return n_tokens


def check_head(model: ModelMetadata, layers: Layers, role: Role) -> tuple[int, bool]:
    """Return the number of MTP blocks in the file and whether it holds them alone."""
    is_assistant = model.arch == ASSISTANT_ARCH
    if model.arch in DRAFT_ONLY_ARCHS and not (is_assistant and role == "mtp"):
        advice = "give its target as the model and this file as --mtp-model" if is_assistant else "it is not supported"
        raise ModelFileError(f"{model.path} is a '{model.arch}' draft model that cannot run by itself; {advice}.")
    if is_assistant:
        if layers.n_trunk:
            raise model.fail(f"{layers.n_nextn} of its {layers.n_all} blocks are marked as MTP blocks, all of them have to be")
        return layers.n_nextn, True

    first = layers.n_trunk
    present = [i for i in range(first, layers.n_all) if model.has(i, "nextn.eh_proj.weight")]
    has_trunk = first > 0 and model.has(0, "attn_norm.weight")
    if role == "mtp":
        if model.arch not in MTP_ARCHS or not present:
            raise ModelFileError(
                f"{model.path} has no MTP head (architecture '{model.arch}', {len(present)} MTP blocks); give a file that "
                "has one as --mtp-model, or leave the option out."
            )
    elif not has_trunk and layers.n_nextn > 0:
        raise ModelFileError(
            f"{model.path} holds only an MTP head, without the model's own blocks; give the whole model, and this file as "
            "--mtp-model."
        )
    if layers.n_nextn == 0 or model.arch not in MTP_ARCHS:
        return 0, False
    if layers.n_nextn != 1 and model.arch in SINGLE_HEAD_ARCHS:
        raise model.fail(f"it announces {layers.n_nextn} MTP blocks, '{model.arch}' runs exactly 1; get another conversion")
    if not present and not any(name.startswith(f"blk.{first}.") for name in model.tensors):
        if model.arch in TRUNK_ONLY_ARCHS:
            return 0, False
        raise model.fail(
            f"it announces {layers.n_nextn} MTP block(s), but none is in it (blk.{first}.* is missing); get a conversion with "
            "the MTP block, or one without the announcement"
        )
    missing = [name for i in range(first, layers.n_all) for name in _missing_head_tensors(model, i)]
    if missing:
        raise model.fail(f"its MTP block is incomplete, {_listed(missing)} missing; get another conversion")
    return layers.n_nextn, not has_trunk


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


_ATTENTION_PROJECTIONS: Mapping[str, tuple[str, ...]] = {
    "deepseek2": ("attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_k_b", "attn_v_b", "attn_output"),
    "mimo2": ("attn_qkv", "attn_output"),
}


def _missing_head_tensors(model: ModelMetadata, i: int) -> Iterator[str]:
    """Tensors whose absence from MTP block i ends the process when its graph is built."""
    wanted = ["nextn.eh_proj", "nextn.enorm", "nextn.hnorm", "attn_norm"]
    if model.arch in ("bailingmoe3", "nemotron_h_moe"):
        wanted.append("layer_output_norm" if model.arch == "bailingmoe3" else "nextn.shared_head_norm")
    if model.arch in _ATTENTION_PROJECTIONS:
        wanted += _ATTENTION_PROJECTIONS[model.arch]
    elif model.arch in MULTI_HEAD_ARCHS | DELTA_NET_ARCHS | {"glm4moe", "cohere2moe", "nemotron_h_moe"}:
        wanted += ["attn_output"] if model.has(i, "attn_qkv.weight") else ["attn_q", "attn_k", "attn_v", "attn_output"]
    for name in wanted:
        if not model.has(i, f"{name}.weight"):
            yield f"blk.{i}.{name}.weight"


def check_blocks(model: ModelMetadata, layers: Layers, *, trunk: bool, head: bool) -> None:
    """Find blocks without a feed-forward or delta-net part where libllama calls it optional and then uses it."""
    blocks = [*(range(layers.n_trunk) if trunk else ()), *(range(layers.n_trunk, layers.n_all) if head else ())]
    missing: list[str] = []
    for i in blocks:
        if model.arch in MULTI_HEAD_ARCHS:
            missing += _missing_ffn_tensors(model, i)
        elif model.arch in ("nemotron_h", "nemotron_h_moe") and layers.recurrent[i]:
            missing += [f"blk.{i}.{n}" for n in ("ssm_conv1d.bias",) if not model.has(i, n)]
        elif model.arch in DELTA_NET_ARCHS and layers.recurrent[i] and not model.has(i, "ssm_in.weight"):
            missing += [f"blk.{i}.{n}.weight" for n in ("attn_qkv", "attn_gate") if not model.has(i, f"{n}.weight")]
    if missing:
        raise model.fail(f"{_listed(missing)} missing; download it again or get another conversion")


def _missing_ffn_tensors(model: ModelMetadata, i: int) -> list[str]:
    if not model.has(i, "ffn_gate_inp.weight") or (model.arch == "mimo2" and i >= model.integer("block_count") - 1):
        names = ["ffn_gate", "ffn_up", "ffn_down"]
    else:
        fused = model.arch == "hy_v3" and model.has(i, "ffn_gate_up_exps.weight")
        names = ["ffn_gate_up_exps"] if fused else ["ffn_gate_exps", "ffn_up_exps"]
        names.append("ffn_down_exps")
        if model.arch != "mimo2":
            names += ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"]
    return [f"blk.{i}.{name}.weight" for name in names if not model.has(i, f"{name}.weight")]
