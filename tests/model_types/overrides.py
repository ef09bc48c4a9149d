"""What the general rules cannot know, model type by model type; "gpt2+scaled" is a variant of gpt2.

`...` leaves a field at its default. A name that stands under several headings has all that is said of it.
"""

from collections.abc import Iterable
from typing import Any

VOCABULARY = 56
Fields = dict[str, Any]
OVERRIDES: dict[str, Fields] = {}
# Types whose causal model is made from the configuration of a part of theirs.
DECODER_OF = {"musicgen": "musicgen_decoder", "musicgen_melody": "musicgen_melody_decoder"}


def say(names: str | Iterable[str], **fields: Any) -> None:
    """Adds these fields to what is said of some types; nested ones by name."""
    for name in names.split() if isinstance(names, str) else names:
        known = OVERRIDES.setdefault(name, {})
        for field, value in fields.items():
            both = isinstance(value, dict) and isinstance(known.get(field), dict)
            known[field] = known[field] | value if both else value


def say_text(names: str, **fields: Any) -> None:
    """The same of the text decoder inside a type."""
    say(names, text_config=fields)


# Encoders that can be decoders
say(
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod reformer",
    is_decoder=True,
)
say("big_bird bigbird_pegasus", attention_type="original_full")
say("xmod", languages=("en_XX",), default_language="en_XX")
say(
    "roc_bert",
    pronunciation_vocab_size=VOCABULARY,
    shape_vocab_size=VOCABULARY,
    pronunciation_embed_dim=16,
    shape_embed_dim=16,
)
say(
    "reformer",
    axial_pos_shape=(8, 8),
    axial_pos_embds_dim=(16, 16),
    attn_layers=["local", "lsh", "local", "lsh"],
    local_attn_chunk_length=4,
    lsh_attn_chunk_length=4,
    num_buckets=4,
    hash_seed=1,
    num_hidden_layers=...,
)
say("xlm", emb_dim=32, causal=True, n_heads=4, n_layers=4, pad_token_id=0, hidden_size=...)
say("xlnet", d_inner=64)

# Alternating kinds of layer
SLIDING = ["sliding_attention", "full_attention"] * 2
LINEAR = ["linear_attention", "full_attention"] * 2
INDEXED = ["linear_attention", "indexed_attention"] * 2
say("exaone4 olmo3 gemma3_text ministral vaultgemma cwm cohere2 cohere2_moe", layer_types=SLIDING)
say("qwen2 qwen3", use_sliding_window=True, layer_types=SLIDING)
say("cohere cohere2 cohere2_moe", logit_scale=1.0)
say("gpt_neo", attention_types=[[["global", "local"], 2]])
say("smollm3", no_rope_layers=[1, 0, 1, 0])
say("minimax", layer_types=LINEAR, block_size=4)
say("lfm2", layer_types=["conv", "full_attention"] * 2)
say("lfm2_moe", layer_types=["conv", "full_attention"] * 2, num_dense_layers=1)
say("bamba", attn_layer_indices=[1, 3])
say("jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1)
say("mamba2", num_heads=4, head_dim=16, chunk_size=16)
say("zamba zamba2", layers_block_type=["linear_attention", "hybrid"] * 2, num_key_value_heads=4)
say("zamba", attention_head_dim=16, attention_hidden_size=64)
say("zamba2", adapter_rank=8, use_shared_attention_adapter=False)
say("recurrent_gemma", block_types=("recurrent", "attention"), lru_width=32)
say(
    "olmo_hybrid",
    layer_types=LINEAR,
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)

# Latent attention, routed experts, indexed keys
say(
    "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm_moe_dsa bailing_hybrid glm4_moe_lite minicpm3 youtu hy_v4 "
    "kimi_linear mistral4 longcat_flash",
    num_key_value_heads=4,
)
say_text("mistral_large4 kimi_k25 unlimited_ocr deepseek_ocr2 glm5_next", num_key_value_heads=4)
say("deepseek_v2 deepseek_v3 deepseek_v32 glm_moe_dsa bailing_hybrid", first_k_dense_replace=1)
say("deepseek_v32", index_topk=4)
say("axk2", head_dim=4)
say("bailing_hybrid", layer_group_size=2, head_dim=8)
say("minicpm3", dim_model_base=32)
say("kimi_linear", linear_head_dim=8, linear_num_heads=4, layer_types=LINEAR)
say(
    "longcat_flash",
    num_layers=2,
    head_dim=4,
    zero_expert_num=2,
    n_routed_experts=4,
    moe_topk=2,
    qk_head_dim=8,
)
say_text("deepseek_ocr2", mlp_layer_types=["dense", "sparse", "sparse", "sparse"])
say("zaya", num_experts_per_tok=1, router_hidden_size=16)
say(
    "dbrx",
    attn_config={"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
    ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
)
say_text(
    "glm5_next",
    qk_rope_head_dim=0,
    qk_nope_head_dim=8,
    head_dim=...,
    linear_head_dim=8,
    linear_num_heads=4,
    index_topk=4,
    index_kpool=2,
    hc_mult=2,
    layer_types=INDEXED,
    mlp_layer_types=["dense", "sparse"] * 2,
    index_topk_freq=1,
)
QWEN4: Fields = {
    "hc_lowrank": 8,
    "ple_layer_ids": [1],
    "ple_embed_dim": 32,
    "heads_per_ngram": 4,
    "ngram_vocab_size_base": 50,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 1,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
    "layer_types": INDEXED,
}
say("qwen4_exp_text", **QWEN4)
say_text("qwen4_exp", **QWEN4)
DOTS3: Fields = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "shared_experts_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "index_topk": 4,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "sliding_window": 4,
    "layer_types": ["indexed_attention", "sliding_attention"] * 2,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 8,
    "swa_qk_nope_head_dim": 4,
    "swa_v_head_dim": 8,
    "swa_qk_rope_head_dim": 4,
}
say("dots3_note_text", **DOTS3)
say(
    "dots3_note",
    text_config=DOTS3,
    vision_config={
        "mlp_layer_types": ["dense", "sparse"],
        "adapter_in_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    audio_config={"adapter_input_size": 16},
)

# Rotations, head counts
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
say("codegen gptj", rotary_dim=4)
say("mpt", attn_config={"attn_pdrop": 0}, n_heads=4)
say_text(
    "qwen2_vl qwen2_5_vl qwen2_5_omni_thinker qwen3_vl qwen3_vl_moe qwen3_omni_moe_thinker glm4v glm46v glmga glm_ocr "
    "paddleocr_vl cosmos3_edge cosmos3_omni ernie4_5_vl_moe hunyuan_vl",
    rope_parameters=MROPE,
)
say_text("glm4v_moe", rope_parameters=MROPE | {"partial_rotary_factor": 1.0}, first_k_dense_replace=1)
say_text("ernie4_5_vl_moe", moe_intermediate_size=[32, 32], moe_num_experts=4)
COMPASS: Fields = {
    "rope_parameters": {"full_attention": MROPE, "sliding_attention": MROPE},
    "layer_types": SLIDING,
    "logit_scale": 1.0,
}
say("cohere_compass_text", **COMPASS)
say_text("cohere_compass", **COMPASS)

# Embeddings a layer of their own, keys shared between layers
GEMMA3N: Fields = {
    "layer_types": SLIDING,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
}
say("gemma3n_text", **GEMMA3N)
say(
    "gemma3n",
    text_config=GEMMA3N,
    vision_config={"architecture": "resnet10t", "hidden_size": 512, "vocab_size": 8, "vocab_offset": 48},
    audio_config={
        "hidden_size": 32,
        "conf_num_attention_heads": 4,
        "conf_num_hidden_layers": 1,
        "vocab_size": 8,
        "vocab_offset": 48,
    },
)
GEMMA4_PLAIN: Fields = {
    "layer_types": SLIDING,
    "num_kv_shared_layers": 2,
    "global_head_dim": 16,
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 4,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
}
GEMMA4 = GEMMA4_PLAIN | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}
say("gemma4_text", **GEMMA4)
say("gemma4_unified_text", **GEMMA4_PLAIN)
say_text("gemma4", **GEMMA4)
say_text("gemma4_unified diffusion_gemma", **GEMMA4_PLAIN)
say(
    "gemma4_assistant",
    text_config=GEMMA4
    | {
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
        "num_kv_shared_layers": 4,
        "model_type": "gemma4_text",
    },
    backbone_hidden_size=32,
    num_centroids=8,
)
say(
    "gemma4_unified_assistant",
    text_config=GEMMA4_PLAIN | {"num_kv_shared_layers": 4, "model_type": "gemma4_unified_text"},
    backbone_hidden_size=32,
    num_centroids=8,
)

TOWER: Fields = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}

# Bytes, and the other towers of types that read images too
say(
    "blt",
    encoder_hash_byte_group_vocab=50,
    encoder_hash_byte_group_size=[3, 4],
    vocab_size=VOCABULARY,
)
say("musicgen musicgen_melody", num_codebooks=1)  # several are several rows a prompt
say("fast_vlm", vision_config={"model_type": "siglip_vision_model"} | TOWER)  # not a tower of timm's: it is idle
say("perception_lm", vision_config={"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 192}})
PICTURE_CODES: Fields = {
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "num_embeddings": 8,
}
say(
    "chameleon",
    vocabulary_map={"<image>": 41},
    vq_config=PICTURE_CODES | {"latent_channels": 16, "embed_dim": 16, "resolution": 16, "attn_resolutions": None},
)
say(
    "janus",
    vq_config=PICTURE_CODES
    | {
        "latent_channels": 32,
        "embed_dim": 8,
        "num_patches": 4,
        "image_token_embed_dim": 32,
        "projection_dim": 32,
    },
)
say(
    "granite4_vision",
    downsample_rate="1/2",
    deepstack_layer_map=[[-1, 0], [-2, 1]],
    spatial_target_layers=[2, 3, 3, 3],
    vision_config={"hidden_size": 64, "num_attention_heads": 2},
)
say(
    "molmo2",
    adapter_config={
        "vision_feature_layer": [-1, -2],
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "text_hidden_size": 32,
        "intermediate_size": 32,
    },
    text_config={"additional_vocab_size": 8},
)
say(
    "muse_spark",
    audio_config={
        "num_hidden_layers": 2,
        "patch_sizes": (4, 4),
        "hidden_sizes": (8, 16),
        "depths": (1, 1),
        "out_hidden_size": 32,
    },
)
say("nemotron_h_omni", vision_config={"video_temporal_patch_size": 2})
say("evolla", protein_encoder_config={"token_dropout": True})
say("inkling_mm_model", vision_config={"patch_size": 40, "temporal_patch_size": 2})
say(
    "florence2",
    vision_config={
        "depths": (1, 1),
        "patch_size": (7, 3),
        "patch_stride": (4, 2),
        "patch_padding": (3, 1),
        "patch_prenorm": (False, True),
        "embed_dim": (16, 32),
        "num_heads": (2, 2),
        "num_groups": (2, 2),
        "hidden_size": ...,
        "projection_dim": 32,
    },
)

# Variants: counts that agree (else num_hidden_layers is the encoder's)
say(
    "bart+equal marian+equal mbart+equal pegasus+equal blenderbot+equal blenderbot-small+equal bigbird_pegasus+equal "
    "plbart+equal mvp+equal whisper+equal",
    encoder_layers=4,
)
say("prophetnet+equal", num_encoder_layers=4)

# Variants: what a configuration can change
ALONE: Fields = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}
say("gemma4_text+plain gemma4_text+moe", **ALONE)
say("gemma4_text+moe", enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32)
say("gemma4_text+ple gemma4_unified_text+plain gemma3n_text+noshare", num_kv_shared_layers=0)
say_text("mllama+cross1", cross_attention_layers=[1], num_hidden_layers=4)
say("falcon+40b", new_decoder_architecture=True, num_kv_heads=2)
say("falcon+rw", multi_query=False, parallel_attn=False, alibi=True, bias=True, num_kv_heads=4)
say("gpt_neox+sequential", use_parallel_residual=False)
say("opt+postnorm", do_layer_norm_before=False, word_embed_proj_dim=16)
say("bloom+postln", apply_residual_connection_post_layernorm=True)
say("stablelm+parallel", use_parallel_residual=True, qk_layernorm=True)
say("gpt_bigcode+mha", multi_query=False)
say("doge+moe", is_moe=True, num_experts=4, num_experts_per_tok=2)
say("hrm_text+short", H_cycles=1, L_cycles=1)
say("gpt2+scaled", scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True)
say("qwen3_next+full lfm2+attention", layer_types=["full_attention"] * 4)
say("granitemoehybrid+attention", layer_types=["mamba", "attention"] * 2)
say("nemotron_h+mixed", layers_block_type=["mamba", "attention", "mlp", "moe"])
say("jamba+period4", attn_layer_period=4, attn_layer_offset=1)
say("deepseek_v2+noq", q_lora_rank=None)
say("mistral+window", sliding_window=4)
say("cohere2_moe+dense", mlp_layer_types=["dense"] * 4)
say("falcon_mamba+fp32", residual_in_fp32=True)
say("bert+encoder", is_decoder=False)
say(
    "granite+multipliers",
    residual_multiplier=0.5,
    embedding_multiplier=3.0,
    attention_multiplier=0.25,
    logits_scaling=1.25,
)
say("granitemoeshared+multipliers", residual_multiplier=0.5)
say("minicpm3+scaled", scale_depth=2.0)

# Variants: what changes with the length of the prompt, at thresholds just above the shorter one's length
BLOCKS: Fields = {"layer_types": ["minimax_m3_sparse"] * 4, "index_n_heads": 2, "index_head_dim": 8}
BLOCKS2 = BLOCKS | {"index_block_size": 2, "index_local_blocks": 1}
BLOCKS8 = BLOCKS | {"index_block_size": 8, "index_topk_blocks": 1}
say("minimax_m3_vl_text+sparse", **BLOCKS2, index_topk_blocks=1)
say("minimax_m3_vl_text+long", **BLOCKS2, index_topk_blocks=3)
say("minimax_m3_vl_text+blocks8", **BLOCKS8, index_local_blocks=1)
say("minimax_m3_vl_text+blocks8l0", **BLOCKS8, index_local_blocks=0)
say("minimax_m3_vl_text+blocks128", **BLOCKS)
say("deepseek_v32+long glm_moe_dsa+long dots3_note_text+long axk2+long", index_topk=6)
say_text("mistral_large4+long", index_topk=6)
say("qwen4_exp_text+long", indexer_budget=6)
say(
    "dots3_note_text+long mistral+window7 gemma3_text+window7 gpt_oss+window7 cohere2+window7",
    sliding_window=7,
)
say("gpt_neo+window7", window_size=7)
say("modernbert-decoder+window7", local_attention=14)
say("llama4_text+long llama4_text+floor7", floor_scale=7, attn_scale=0.5, attn_temperature_tuning=True)
say("llama4_text+long llama4_text+chunk8", attention_chunk_size=8)
say("llama4_text+floor60", floor_scale=60, attn_scale=0.5, attn_temperature_tuning=True)
say("llama4_text+floor8192", floor_scale=8192, attn_scale=0.1)
say("inkling_text+long", log_scaling_n_floor=7, log_scaling_alpha=0.5, sliding_window_size=7)
say(
    "ministral3+long mistral4+long",
    rope_parameters={
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 7,
        "llama_4_scaling_beta": 0.5,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
)
say(
    "phi3+longrope",
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.5, 2.0, 3.0, 4.0],
        "original_max_position_embeddings": 7,
    },
    original_max_position_embeddings=7,
)
