"""Tiny random causal language models: one entry a family of Hugging Face decoders, and one a variant.

Shapes are small (vocabulary 97, width 32, 8 a head) and weights large: two changed tokens among nine move the
last position's logits by about one or more, so a forgotten bias, norm, mask or scale shows.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    name: str
    model_type: str
    config: dict[str, Any] = field(hash=False)
    scale: float = 0.22  # of the weights: a changed token shows, rounding does not (float32, to 1e-5)
    attention: tuple[str, ...] = ("sdpa", "eager")  # the implementations it supports, its default first
    residual: Literal["sequential", "parallel"]
    parts: tuple[str, ...] = ("attn_out", "mlp_out")  # what can be told of what a layer adds
    packed: bool = True  # calls the replaceable attention function (AttentionInterface)
    grouped_queries: bool

    @property
    def components(self) -> tuple[str, ...]:
        """What is offered of whole layers and their parts, in computation order."""
        middle = ("resid_mid",) if self.residual == "sequential" and "mlp_out" in self.parts else ()
        order = ("attn_out", "resid_mid", "mlp_out", "mixer_out")
        return ("resid_pre", *sorted({*self.parts, *middle}, key=order.index), "resid_post")


WINDOW = 4  # shorter than the tests' prompts of 9 tokens
MIXED_LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]

BARE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = BARE | {"num_attention_heads": 4, "max_position_embeddings": 64}
DENSE = HEADS | {"intermediate_size": 64}
GROUPED = DENSE | {"num_key_value_heads": 2}
LLAMA = GROUPED | {"head_dim": 8}
GEMMA = LLAMA | {"query_pre_attn_scalar": 8, "sliding_window": WINDOW}
GEMMA3 = GEMMA | {"layer_types": MIXED_LAYERS}
GPT2 = HEADS | {"n_inner": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
OPT = HEADS | {"ffn_dim": 64, "dropout": 0.0}
FALCON = HEADS | {"ffn_hidden_size": 64}

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}

FAMILIES: tuple[Family, ...] = (
    Family(name="llama", model_type="llama", config=LLAMA, residual="sequential", grouped_queries=True),
    Family(name="qwen2", model_type="qwen2", config=GROUPED, residual="sequential", grouped_queries=True),
    Family(name="qwen3", model_type="qwen3", config=LLAMA, residual="sequential", grouped_queries=True),
    Family(
        name="qwen3-wide-heads",  # heads × head_dim is not the width, as in most qwen3 checkpoints
        model_type="qwen3",
        config=LLAMA | {"head_dim": 16},
        residual="sequential",
        grouped_queries=True,
    ),
    Family(
        name="mistral",
        model_type="mistral",
        config=LLAMA | {"sliding_window": WINDOW},
        residual="sequential",
        grouped_queries=True,
    ),
    Family(
        name="gemma2",
        model_type="gemma2",
        config=GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0},
        attention=("eager",),  # sdpa cannot cap the attention's logits
        residual="sequential",
        grouped_queries=True,
    ),
    Family(
        name="gemma3_text",
        model_type="gemma3_text",
        config=GEMMA3,
        residual="sequential",
        grouped_queries=True,
    ),
    Family(
        name="gemma3",
        model_type="gemma3",
        config={
            "text_config": GEMMA3,
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            # Outside the vocabulary: no random prompt holds an image.
            "image_token_index": 97,
            "boi_token_index": 98,
            "eoi_token_index": 99,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        residual="sequential",
        grouped_queries=True,
    ),
    Family(name="phi", model_type="phi", config=GROUPED, scale=0.3, residual="parallel", grouped_queries=True),
    Family(name="phi3", model_type="phi3", config=GROUPED, residual="sequential", grouped_queries=True),
    Family(name="gpt2", model_type="gpt2", config=GPT2, scale=0.3, residual="sequential", grouped_queries=False),
    Family(
        name="gpt_neox",
        model_type="gpt_neox",
        config=DENSE,
        scale=0.3,
        residual="parallel",
        grouped_queries=False,
    ),
    Family(
        name="gpt_neox-sequential",
        model_type="gpt_neox",
        config=DENSE | {"use_parallel_residual": False},
        scale=0.3,
        residual="sequential",
        grouped_queries=False,
    ),
    Family(name="opt", model_type="opt", config=OPT, scale=0.3, residual="sequential", grouped_queries=False),
    Family(
        name="opt-350m",
        model_type="opt",
        config=OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
        scale=0.4,
        residual="sequential",
        grouped_queries=False,
    ),
    Family(name="olmo", model_type="olmo", config=GROUPED, residual="sequential", grouped_queries=True),
    Family(name="olmo2", model_type="olmo2", config=GROUPED, residual="sequential", grouped_queries=True),
    Family(
        name="mixtral",
        model_type="mixtral",
        config=LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
        residual="sequential",
        grouped_queries=True,
    ),
    Family(
        name="qwen3_moe",
        model_type="qwen3_moe",
        config=LLAMA | {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2},
        residual="sequential",
        grouped_queries=True,
    ),
    Family(
        name="gpt_oss",
        model_type="gpt_oss",
        config=LLAMA
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 16,
            },
        },
        attention=("eager",),  # sdpa has no sinks
        residual="sequential",
        grouped_queries=True,
    ),
    Family(
        name="cohere",
        model_type="cohere",
        config=GROUPED | {"logit_scale": 0.75},
        scale=0.3,
        residual="parallel",
        grouped_queries=True,
    ),
    Family(name="stablelm", model_type="stablelm", config=GROUPED, residual="sequential", grouped_queries=True),
    Family(
        name="stablelm-parallel",  # as stablelm-2-12b
        model_type="stablelm",
        config=GROUPED | {"use_parallel_residual": True, "qk_layernorm": True},
        residual="parallel",
        grouped_queries=True,
    ),
    Family(
        name="granite",
        model_type="granite",
        config=GROUPED
        | {
            "residual_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.25,
            "logits_scaling": 1.25,
        },
        residual="sequential",
        grouped_queries=True,
    ),
    Family(
        name="falcon",  # 7b
        model_type="falcon",
        config=FALCON,
        scale=0.3,
        residual="parallel",
        packed=False,
        grouped_queries=True,
    ),
    Family(
        name="falcon-40b",
        model_type="falcon",
        config=FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        scale=0.3,
        residual="parallel",
        packed=False,
        grouped_queries=True,
    ),
    Family(
        name="falcon-rw",
        model_type="falcon",
        config=FALCON | {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
        attention=("sdpa",),  # transformers' eager falcon adds alibi twice: in the mask and to the scores
        scale=0.3,
        residual="sequential",
        packed=False,
        grouped_queries=False,
    ),
    Family(
        name="bloom",
        model_type="bloom",
        config=BARE | {"num_attention_heads": 4},
        attention=("eager",),
        scale=0.3,
        residual="sequential",
        packed=False,
        grouped_queries=False,
    ),
    Family(
        name="gptj",
        model_type="gptj",
        config=GPT2 | {"rotary_dim": 4},
        attention=("eager",),
        scale=0.3,
        residual="parallel",
        packed=False,
        grouped_queries=False,
    ),
    Family(
        name="gpt_neo",
        model_type="gpt_neo",
        config=DENSE | {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
        attention=("eager",),
        residual="sequential",
        packed=False,
        grouped_queries=False,
    ),
    Family(
        name="mpt",
        model_type="mpt",
        config=BARE | {"num_attention_heads": 4, "max_seq_len": 64},
        attention=("eager",),
        residual="sequential",
        packed=False,
        grouped_queries=False,
    ),
    Family(
        name="deepseek_v3",
        model_type="deepseek_v3",
        config=DENSE
        | {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 64,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
        },
        residual="sequential",
        grouped_queries=False,
    ),
    Family(
        name="falcon_h1",  # attention and a state space side by side, both added before the MLP
        model_type="falcon_h1",
        config=GROUPED
        | {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
        },
        residual="sequential",
        grouped_queries=True,
    ),
    Family(
        name="qwen3_next",  # a linear attention with a state of its own in every other layer, experts everywhere
        model_type="qwen3_next",
        config=LLAMA
        | {
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "mlp_only_layers": [],
        },
        residual="sequential",
        packed=False,
        grouped_queries=True,
    ),
    Family(
        name="mamba",  # no attention at all
        model_type="mamba",
        config=BARE | {"state_size": 8},
        attention=("eager",),
        residual="sequential",
        parts=("mixer_out",),
        packed=False,
        grouped_queries=False,
    ),
)


def build(
    family: Family, attention: str | None = None, *, dtype: torch.dtype = torch.float32, seed: int = 1
) -> PreTrainedModel:
    """The model in eval mode, with the same weights in every dtype; the caller's random state is left alone."""
    config = AutoConfig.for_model(family.model_type, **family.config)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(
            config,
            attn_implementation=attention or family.attention[0],
            experts_implementation="eager",  # the same numbers in a batch of any size, and in float64
            dtype=dtype,
        )
    generator = torch.Generator().manual_seed(seed)
    # Families name their initial scales differently and leave biases at 0 and gains at 1: overwrite them all.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "sinks")):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim == 1:  # a norm's gain around its own start, which is 0 in gemma
                parameter.add_(torch.rand(parameter.shape, generator=generator) - 0.5)
            else:
                parameter.copy_(family.scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()
