"""A reference model as a GGUF file that llama.cpp loads as qwen35.

Knows the names and the metadata; the layout of the tensors is the model's own already (see model.py), so that only the decay
rate is transformed. The converter of llama.cpp turns published checkpoints into the same layout.

Source: conversion/qwen.py and gguf-py of the llama.cpp that patches/UPSTREAM names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from scripts.reference.model import Attention, Block, DeltaNet, FeedForward, ReferenceModel
from scripts.reference.tokenizer import PRE_TOKENIZER, gguf_fields

ARCH = "qwen35"
TYPES = {
    "F32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "F16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def _attention(prefix: str, attention: Attention) -> Iterator[tuple[str, Tensor]]:
    yield f"{prefix}.attn_q.weight", attention.q.weight
    yield f"{prefix}.attn_k.weight", attention.k.weight
    yield f"{prefix}.attn_v.weight", attention.v.weight
    yield f"{prefix}.attn_output.weight", attention.out.weight
    yield f"{prefix}.attn_q_norm.weight", attention.q_norm.weight
    yield f"{prefix}.attn_k_norm.weight", attention.k_norm.weight


def _delta_net(prefix: str, net: DeltaNet) -> Iterator[tuple[str, Tensor]]:
    yield f"{prefix}.attn_qkv.weight", net.qkv.weight
    yield f"{prefix}.attn_gate.weight", net.gate.weight
    yield f"{prefix}.ssm_conv1d.weight", net.conv
    yield f"{prefix}.ssm_dt.bias", net.dt_bias
    yield f"{prefix}.ssm_a", -net.log_rate.exp()
    yield f"{prefix}.ssm_beta.weight", net.beta.weight
    yield f"{prefix}.ssm_alpha.weight", net.alpha.weight
    yield f"{prefix}.ssm_norm.weight", net.norm.weight
    yield f"{prefix}.ssm_out.weight", net.out.weight


def _feed_forward(prefix: str, ffn: FeedForward) -> Iterator[tuple[str, Tensor]]:
    yield f"{prefix}.ffn_gate.weight", ffn.gate.weight
    yield f"{prefix}.ffn_up.weight", ffn.up.weight
    yield f"{prefix}.ffn_down.weight", ffn.down.weight


def tensors(model: ReferenceModel) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names and F32 values of all tensors, in the order of the file."""

    def named() -> Iterator[tuple[str, Tensor]]:
        yield "token_embd.weight", model.embedding
        yield "output_norm.weight", model.output_norm.weight
        for i, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            prefix = f"blk.{i}"
            yield f"{prefix}.attn_norm.weight", block.attn_norm.weight
            mixer = block.mixer
            yield from _delta_net(prefix, mixer) if isinstance(mixer, DeltaNet) else _attention(prefix, mixer)
            yield f"{prefix}.post_attention_norm.weight", block.post_norm.weight
            yield from _feed_forward(prefix, block.ffn)
        prefix, mtp = f"blk.{model.config.n_layer}", model.mtp
        yield f"{prefix}.attn_norm.weight", mtp.attn_norm.weight
        yield from _attention(prefix, mtp.mixer)
        yield f"{prefix}.post_attention_norm.weight", mtp.post_norm.weight
        yield from _feed_forward(prefix, mtp.ffn)
        yield f"{prefix}.nextn.eh_proj.weight", mtp.eh_proj.weight
        yield f"{prefix}.nextn.enorm.weight", mtp.enorm.weight
        yield f"{prefix}.nextn.hnorm.weight", mtp.hnorm.weight
        yield f"{prefix}.nextn.shared_head_norm.weight", mtp.head_norm.weight

    for name, tensor in named():
        yield name, tensor.detach().float().cpu().numpy()


def _keep_f32(name: str) -> bool:
    return name.endswith(("norm.weight", "ssm_conv1d.weight"))


def _add_metadata(writer: gguf.GGUFWriter, model: ReferenceModel, name: str, note: str) -> None:
    c = model.config
    writer.add_name(name)
    writer.add_description("Small Qwen3.5-architecture language model with an MTP block" + (f"; {note}" if note else ""))
    writer.add_context_length(c.n_ctx)
    writer.add_embedding_length(c.n_embd)
    writer.add_block_count(c.n_layer + 1)
    writer.add_nextn_predict_layers(1)
    writer.add_feed_forward_length(c.n_ff)
    writer.add_head_count(c.n_head)
    writer.add_head_count_kv(c.n_head_kv)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_eps)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_rope_dimension_count(c.n_rot)
    writer.add_rope_dimension_sections(list(c.rope_sections))
    writer.add_full_attention_interval(c.full_attention_interval)
    writer.add_ssm_conv_kernel(c.conv_kernel)
    writer.add_ssm_state_size(c.state_size)
    writer.add_ssm_group_count(c.n_key_heads)
    writer.add_ssm_time_step_rank(c.n_value_heads)
    writer.add_ssm_inner_size(c.value_dim)


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    vocab = gguf_fields(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(vocab.tokens)
    writer.add_token_types(vocab.types)
    writer.add_token_merges(vocab.merges)
    writer.add_eos_token_id(vocab.eos)
    writer.add_eot_token_id(vocab.eos)
    writer.add_pad_token_id(vocab.eot_text)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def export(model: ReferenceModel, tokenizer: Tokenizer, path: Path, type: str = "F16", *, name: str = "", note: str = "") -> None:
    """Write a model as GGUF, the output matrix tied to the embeddings.

    Args:
        type: F32, F16 or Q8_0, of the matrices; norms, kernels and rates are F32 always
        name: general.name; by default the size
        note: added to the description
    Raises: ValueError for another type, or a tokenizer of another size than the model.
    """
    if type not in TYPES:
        raise ValueError(f"cannot export as {type}; choose from {', '.join(TYPES)}.")
    if tokenizer.get_vocab_size() != model.config.n_vocab:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} ids, the model {model.config.n_vocab} rows.")
    wanted, file_type = TYPES[type]
    writer = gguf.GGUFWriter(path, ARCH)
    _add_metadata(writer, model, name or f"EntMTP reference {model.n_parameters() / 1e6:.0f}M", note)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocabulary(writer, tokenizer)
    for tensor_name, data in tensors(model):
        kind = gguf.GGMLQuantizationType.F32 if data.ndim == 1 or _keep_f32(tensor_name) else wanted
        writer.add_tensor(tensor_name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
