"""Tiny random models, a word-level tokenizer and GGUF files to go with them, made on the spot."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
NOUNS = ("Rome", "Paris", "Mary", "John", "the", "city", "of", "is", "in", "to", "gave", "drink", "store", "went")
# With and without the space in front; the rest of the 97 are numbers.
WORDS = tuple(dict.fromkeys((*NOUNS, *(f" {noun}" for noun in NOUNS))))
SIZE = 97
SHAPE = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """97 words, one token each, its leading space included; it says where its tokens lie, and adds a BOS if asked."""
    fill = [f" {number}" for number in range(SIZE - len(SPECIAL) - len(WORDS))]
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS, *fill))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer.decoder = decoders.Fuse()  # words bring their own spaces
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny_model(family: str = "llama", **overrides: Any) -> PreTrainedModel:
    """A random model with weights large enough to matter; the caller's random state is left alone."""
    config = AutoConfig.for_model(family, **SHAPE | overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def tiny_folder(folder: Path, **overrides: Any) -> PreTrainedModel:
    """Saves a tiny llama with its tokenizer, and returns it."""
    model = tiny_model(**overrides)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def logits(model: Any) -> torch.Tensor:
    """Of one fixed prompt of ordinary tokens."""
    tokens = torch.tensor([[4, 9, 17, 25, 33, 41]], device=model.device)
    with torch.no_grad():
        return model(input_ids=tokens).logits


def tiny_gguf(path: Path) -> PreTrainedModel:
    """Writes a tiny llama with a byte-level tokenizer as GGUF, and returns the model that it holds."""
    model = tiny_model(vocab_size=len(SPECIAL) + 256 + 1)
    config: Any = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _write_vocabulary(writer)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(_gguf_name(name), _gguf_layout(name, tensor.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _write_vocabulary(writer: gguf.GGUFWriter) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *letters, "th"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(letters) + 1))  # control, normal
    writer.add_token_merges(["t h"])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)


def _gguf_name(name: str) -> str:
    parts = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name


def _gguf_layout(name: str, weight: np.ndarray, config: Any) -> np.ndarray:
    """GGUF keeps llama's queries and keys with the two halves of each rotation next to each other."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for projection, count in heads.items():
        if projection in name:
            halves = weight.reshape(count, 2, config.head_dim // 2, weight.shape[1])
            return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
    return weight
