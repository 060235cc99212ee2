"""What the pinned llama.cpp does with each architecture, as far as a file has to be checked for it.

Source: src/models/*.cpp, src/llama-arch.cpp and create_memory in src/llama-model.cpp. To be gone through when the
pinned source changes.
"""

from __future__ import annotations

from collections.abc import Mapping


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ASSISTANT_ARCH = "gemma4-assistant"
ASSISTANT_TARGET = "gemma4"

# Architectures with an MTP graph. The first group asserts n_layer_nextn == 1, the second chains as many as there are.
SINGLE_HEAD_ARCHS = _names(
    "qwen35 qwen35moe qwen3next glm4moe cohere2moe deepseek2 deepseek32 deepseek4 glm-dsa bailingmoe3 nemotron_h_moe"
)
MULTI_HEAD_ARCHS = frozenset({"step35", "mimo2", "hy_v3"})
MTP_ARCHS = SINGLE_HEAD_ARCHS | MULTI_HEAD_ARCHS

# These load a file whose metadata announces MTP blocks that are not in it, with load_mtp or without.
TRUNK_ONLY_ARCHS = MTP_ARCHS - {"qwen35", "qwen35moe", "qwen3next", "nemotron_h_moe", "deepseek4"}

DELTA_NET_ARCHS = frozenset({"qwen35", "qwen35moe", "qwen3next"})
HYBRID_ARCHS = DELTA_NET_ARCHS | _names(
    "jamba falcon-h1 plamo2 granitehybrid lfm2 lfm2moe nemotron_h nemotron_h_moe kimi-linear bailingmoe3 kimi-k3 "
    "glm5-next qwen4exp minimax-01"
)
RECURRENT_ARCHS = _names("mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7")
INDEXED_ARCHS = _names("deepseek32 deepseek4 glm-dsa dots3note hy_v4 minimax-m3")
WINDOW_ARCHS = _names(
    "afmoe cohere2 cohere2moe exaone-moe exaone4 gemma2 gemma3 gemma3n gemma4 gpt-oss granite_swa laguna llama4 "
    "maple mellum mimo2 muse-glimmer olmo2 plamo3 smallthinker spark2_5 step35"
)

LATENT_ARCHS = frozenset({"deepseek2", "deepseek32", "glm-dsa", "bailingmoe3"})

# Their attention may do without rotary positions; with none elsewhere the rotation loop never ends.
UNROTATED_ARCHS = (HYBRID_ARCHS - DELTA_NET_ARCHS - {"bailingmoe3"}) | RECURRENT_ARCHS

DRAFT_ONLY_ARCHS = frozenset({ASSISTANT_ARCH, "eagle3", "dflash"})
NOT_GENERATING_ARCHS = _names(
    "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert gemma-embedding "
    "llama-embed t5 t5encoder wavtokenizer-dec dream llada llada-moe rnd1 qwen3tts pockettts"
)

# general.file_type, enum llama_ftype; "-" stands for numbers that are not in use
_FILE_TYPE_NAMES = (
    "F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS "
    "IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - TQ1_0 TQ2_0 "
    "MXFP4_MOE NVFP4 Q1_0 Q2_0"
)
FILE_TYPES: Mapping[int, str] = {i: name for i, name in enumerate(_FILE_TYPE_NAMES.split()) if name != "-"}
