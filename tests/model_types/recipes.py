"""Tiny random models of every model type that transformers knows as a causal or an image-text-to-text model.

1. The fields of a type's configuration class are known by their names: `RULES` say what makes each small.
2. What a rule cannot know stands in `overrides.py`, type by type; "falcon+rw" is a variant of falcon.
3. Every parameter is made to matter: weights of order 0.25, biases off 0, gains off 1.
"""

import inspect
import re
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from model_types.overrides import DECODER_OF, OVERRIDES, VOCABULARY

# Of a type in both mappings, the causal model.
NETWORKS: dict[str, str] = {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
NETWORKS |= {name: model for name, model in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items() if name not in NETWORKS}
TYPES = tuple(NETWORKS)
VARIANTS = tuple(name for name in OVERRIDES if "+" in name)

FIRST_MARKER = 41  # from here on: tokens that stand for an image, a sound, an end. Prompts hold none of them

# A field's name, as a regular expression, and its value. The first that fits wins.
RULES: tuple[tuple[str, Any], ...] = (
    (r"(.*_)?(vocab_size|vocabulary_size)", VOCABULARY),
    (r"vocab_size_per_layer_input|padded_vocab_size|unpadded_vocab_size", VOCABULARY),
    (r"hidden_size|n_embd|d_model|embed_dim|dim_model|projection_dim|projector_hidden_size|out_hidden_size", 32),
    (r"text_hidden_size|hidden_size_global|adapter_out_dim", 32),
    (r"word_embed_proj_dim|embedding_size|input_embedding_size|output_embedding_size", 32),
    (r"intermediate_size|n_inner|ffn_dim|dff|dim_ff|d_ff|ffn_hidden_size|(decoder|encoder)_ffn_dim", 64),
    (r"feed_forward_size|dense_intermediate_size|prefix_dense_intermediate_size|intermediate_size_mlp", 64),
    (r"moe_dense_intermediate_size|swa_intermediate_size", 64),
    (r".*moe.*intermediate_size|shared.*intermediate_size", 32),
    (r"expert_ffn_hidden_size|expert_intermediate_size", 32),
    (r"num_hidden_layers|n_layers?|decoder_layers|num_layers|num_decoder_layers", 4),
    (r"encoder_layers|num_encoder_layers", 2),
    (r"(num_|swa_num_)?(attention_heads)|n_heads?|num_heads", 4),
    (r"(decoder|encoder|num_decoder|num_encoder)_attention_heads", 4),
    (r"num_key_value_heads|num_kv_heads|swa_num_key_value_heads|num_global_key_value_heads", 2),
    (r"head_dim|swa_head_dim|dim_head|d_kv|attention_head_size|global_head_dim|kv_channels", 8),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|max_target_positions", 64),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok|moe_topk|moe_k|num_experts_per_token|moe_top_k|top_k_experts", 2),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"n_group|num_expert_group", 2),
    (r"topk_group", 1),
    (r"(kv|q|o)_lora_rank", 16),
    (r"qk_rope_head_dim|qk_nope_head_dim", 4),
    (r"v_head_dim", 8),
    (r"sliding_window|window_size|local_attention|sliding_window_size|attention_window_size|attention_chunk_size", 4),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 4),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 16),
    (r"mamba_d_state|ssm_state_size|state_size|mamba_state_size", 8),
    (r"mamba_chunk_size|chunk_size", 16),
    (r"mamba_n_groups|n_groups|mamba_ngroups", 1),
    (r"mamba_d_ssm", 64),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"linear_(key|value)_head_dim", 8),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"index_head_dim|indexer_head_dim", 8),
    (r"index_n_heads|indexer_n_heads", 2),
    (r"index_topk", 4),
    (r"pad_token_id", 0),
    (r"bos_token_id", 1),
    (r"eos_token_id|eod_token_id", 2),
    (r"initializer_range|init_std", 0.3),
    (r"query_pre_attn_scalar", 8),
    (r".*(dropout|pdrop|layerdrop|dropout_prob|dropout_rate|jitter_noise)", 0.0),
)
# Towers that a prompt of text alone leaves idle: only small.
TOWER_RULES: tuple[tuple[str, Any], ...] = (
    (r"hidden_size|embed_dim|n_embd|d_model|width|hidden_dim", 16),
    (r"intermediate_size|ffn_dim|mlp_dim|encoder_ffn_dim", 32),
    (r"num_hidden_layers|depth|n_layers|num_layers|layers|encoder_layers|decoder_layers", 2),
    (r"num_attention_heads|num_heads|n_heads|encoder_attention_heads|attention_heads", 2),
    (r"num_key_value_heads", 2),
    (r"head_dim", 8),
    (r"image_size", 16),
    (r"patch_size", 4),
    (r"projection_dim", 16),
    (r"out_hidden_size", 32),
    (r"vocab_size", 99),
    (r"temporal_patch_size", 1),
    (r"spatial_merge_size", 2),
    *RULES,
)
TOWERS = ("vision", "audio", "qformer", "vq", "perceiver", "depth", "patcher", "adapter", "connector", "sam")
MARKER = re.compile(r".*token_(id|index)|.*_id|boi_token_index|image_patch_id")
NAMED_BY_WORDS = ("mamba_d_head", "mamba_dt_rank", "time_step_rank")  # "auto" where others have numbers
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


def config_for(name: str) -> Any:
    """The configuration of a model type or a variant. Raises what transformers raises where it cannot be made."""
    model_type = name.partition("+")[0]
    configuration = CONFIG_MAPPING[DECODER_OF.get(model_type, model_type)]
    said = OVERRIDES.get(model_type, {})
    if name != model_type:
        said = merged(said, OVERRIDES[name])
    try:
        fields = Recipe().of(configuration())
    except Exception:  # a class without defaults: everything is said in the overrides
        if not said:
            raise
        fields = {}
    return configuration(**merged(fields, said))


def build(name: str) -> Any:
    """The model in eval mode and float32, with the same random weights each time."""
    config = config_for(name)
    network = getattr(transformers, NETWORKS[name.partition("+")[0]])
    if not isinstance(config, network.config_class):  # a text model with the configuration of the whole
        config = config.get_text_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = network._from_config(config).eval()
    randomise(model)
    return model


class Recipe:
    """What to say to a configuration class so that it is tiny; markers of other modalities get tokens of their own."""

    def __init__(self) -> None:
        self.next_marker = FIRST_MARKER

    def of(self, config: Any, *, tower: bool = False) -> dict[str, Any]:
        """The fields of a configuration, and of those inside it, by the rules."""
        fields = {}
        for name in (*dict.fromkeys(declared(type(config))), *SPECIAL):
            value = read(config, name)
            if isinstance(value, PreTrainedConfig):
                idle = tower or any(word in name for word in TOWERS)
                fields[name] = self.of(value, tower=idle) | {"model_type": value.model_type}
            elif not isinstance(value, (dict, str)) or name in NAMED_BY_WORDS:
                fields |= self._field(name, value, TOWER_RULES if tower else RULES)
        return fields

    def _field(self, name: str, value: Any, rules: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
        for pattern, new in rules:
            if re.fullmatch(pattern, name):
                listed = isinstance(value, (list, tuple)) and not name.endswith("token_id")
                return {} if listed else {name: new}
        if MARKER.fullmatch(name) and isinstance(value, int) and not isinstance(value, bool) and value >= 3:
            marker, self.next_marker = self.next_marker, min(VOCABULARY - 1, self.next_marker + 1)
            return {name: marker}
        return {}


def declared(configuration: type) -> list[str]:
    """The names of a configuration class's own fields, and its ancestors'."""
    classes = [each for each in configuration.__mro__ if issubclass(each, PreTrainedConfig)]
    return sorted({name for each in classes if each is not PreTrainedConfig for name in inspect.get_annotations(each)})


def read(config: Any, name: str) -> Any:
    """A field's value, or its class's default where it differs from layer to layer."""
    try:
        return getattr(config, name, None)
    except Exception:
        return getattr(type(config), name, None)


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two nested dictionaries, the second on top; `...` takes a field away."""
    out = dict(below)
    for name, value in above.items():
        if value is ...:
            out.pop(name, None)
        elif isinstance(value, dict) and isinstance(out.get(name), dict):
            out[name] = merged(out[name], value)
        else:
            out[name] = value
    return out


def randomise(model: nn.Module, *, seed: int = 3, scale: float = 0.25) -> None:
    """Overwrites weights that are too small or too large to matter, and moves what starts at 0 or 1 away from it."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.dtype)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            if any(word in name for word in ("A_log", "dt_bias", "time_decay", "recurrent_param")):  # rates of decay
                parameter.add_(0.1 * noise(parameter))
            elif parameter.ndim <= 1:
                parameter.add_(0.2 * noise(parameter))
            elif not 0.12 <= parameter.std() <= 1.0:
                parameter.copy_(scale * noise(parameter))
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:  # which experts a router favours
                buffer.add_(0.1 * noise(buffer))
            elif "layer_scalar" in name:
                buffer.mul_(0.6 + 0.3 * torch.rand(buffer.shape, generator=generator))


transformers.logging.set_verbosity_error()
