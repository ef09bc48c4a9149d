"""Models handed in from memory: left as they are, taken out of nnsight's, refused where they cannot be traced."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from causal_tracing.errors import (
    InvalidOption,
    UnsupportedModel,
)
from causal_tracing.experiments.load import load
from causal_tracing.models.open import open_model
from opening import refused
from tiny import SHAPE, tiny_folder, tiny_model, tiny_tokenizer


def test_a_model_from_memory_is_left_as_it_is():
    model = tiny_model(attn_implementation="eager").to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    model.train()
    model.model.layers[1].eval()
    model.lm_head.requires_grad_(False)
    tokenizer = tiny_tokenizer()
    before = state(model)
    opened = open_model(model, tokenizer)
    assert opened.network is model
    assert opened.tokenizer is tokenizer
    assert state(model) == before
    assert opened.source == {"kind": "memory", "class": "transformers.models.llama.modeling_llama.LlamaForCausalLM"}
    assert opened.name == "LlamaForCausalLM"


def state(model: Any) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "storage": [(parameter.data_ptr(), parameter.dtype, parameter.device) for parameter in model.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "attention": model.config._attn_implementation,
    }


def test_a_model_from_memory_needs_its_tokenizer():
    assert "handed in without its tokenizer" in refused(InvalidOption, tiny_model())


@pytest.mark.parametrize("option", [{"dtype": "float32"}, {"device": "cpu"}, {"revision": "main"}, {"gguf_file": "x"}])
def test_a_model_from_memory_takes_no_options(option: dict[str, str]):
    message = refused(InvalidOption, tiny_model(), tiny_tokenizer(), **option)
    assert f"{next(iter(option))}=" in message
    assert "already in memory" in message


SMALL = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 97}
BERT = SHAPE | {"num_key_value_heads": 4}


@pytest.mark.parametrize(
    "model",
    [
        AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **SMALL)),
        AutoModel.from_config(AutoConfig.for_model("llama", **SHAPE)),
        AutoModelForSequenceClassification.from_config(AutoConfig.for_model("llama", **SHAPE)),
        AutoModel.from_config(AutoConfig.for_model("bert", **BERT)),
        torch.nn.Linear(2, 2),
        17,
    ],
    ids=["t5", "no head", "classifier", "bert", "module", "number"],
)
def test_something_from_memory_that_is_no_causal_language_model(model: Any):
    message = refused(UnsupportedModel, model, tiny_tokenizer())
    said = {
        "T5": "an encoder with a decoder: .* Give a causal decoder",
        "Ll": r"has no head that predicts the next token\. Load the model with one: AutoModelForCausalLM",
        "Be": r"an encoder: each of its tokens sees the later ones\. Give a causal decoder",
    }.get(type(model).__name__[:2], "cannot be opened")
    assert re.search(said, message)
    assert ("AutoModelForCausalLM" in message) == (type(model).__name__[:2] == "Ll")  # no advice that cannot help


class PeftModelForCausalLM(torch.nn.Module):
    """A wrapper as peft's are, whose forward may do more than the network's inside."""

    def __init__(self, network: Any, times: float = 1.0, **config: Any) -> None:
        super().__init__()
        self.network, self.times = network, times
        self.peft_config = {"default": SimpleNamespace(**{"peft_type": "LORA", **config})}

    def get_base_model(self) -> Any:
        return self.network

    def forward(self, input_ids: Any, **options: Any) -> Any:
        found = self.network(input_ids=input_ids, **options)
        found.logits = found.logits * self.times
        return found


def test_learned_prompts_are_not_the_model_inside():
    wrapped = PeftModelForCausalLM(tiny_model(), peft_type="PROMPT_TUNING", is_prompt_learning=True)
    message = refused(UnsupportedModel, wrapped, tiny_tokenizer())
    assert "of the kind PROMPT_TUNING puts learned vectors before every prompt" in message
    assert "is another one" in message


def test_adapters_of_weights_are_traced_in_the_network_inside():
    model = tiny_model()
    opened = open_model(PeftModelForCausalLM(model), tiny_tokenizer())
    assert opened.network is model
    assert opened.source["wrapper"] == "peft PeftModelForCausalLM"


def test_a_wrapper_that_does_more_than_the_network_inside_is_refused():
    assert "gives other logits than the network inside" in refused(
        UnsupportedModel, PeftModelForCausalLM(tiny_model(), times=1.1), tiny_tokenizer()
    )
    switched = PeftModelForCausalLM(tiny_model(), alora_invocation_tokens=[3, 4])
    assert "is switched on by some words of a prompt" in refused(UnsupportedModel, switched, tiny_tokenizer())


def test_an_encoder_from_memory_is_found_out_when_it_is_checked():
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **BERT)).eval()
    with pytest.raises(UnsupportedModel):
        load(model, tiny_tokenizer())


def test_a_model_without_weights():
    with torch.device("meta"):
        model = tiny_model()
    said = refused(UnsupportedModel, model, tiny_tokenizer())
    assert "has no weights: all its 39 parameters are on the meta device (model.embed_tokens.weight, " in said
    assert "and 36 more), and no hook of accelerate's says where their numbers are kept." in said


def test_a_model_without_some_of_its_weights():
    model = tiny_model()
    model.get_submodule("model.layers.1.mlp").to("meta")
    said = refused(UnsupportedModel, model, tiny_tokenizer())
    assert "lacks weights: 3 of its 39 parameters are on the meta device (model.layers.1.mlp.gate_proj.weight, " in said


def test_a_model_whose_weights_accelerate_keeps_is_left_as_it_is():
    model = cpu_offload(tiny_model(), execution_device=torch.device("cpu"))
    assert open_model(model, tiny_tokenizer()).network is model
    assert all(parameter.is_meta for parameter in model.parameters())


NNSIGHT = """
import sys
sys.path.insert(0, {tests!r})
import torch
from causal_tracing.errors import UnsupportedModel
from causal_tracing.models.open import open_model
from tiny import logits, tiny_model, tiny_tokenizer
open_model({folder!r})
assert "nnsight" not in sys.modules, "nnsight was imported"

from nnsight import LanguageModel, NNsight
lazy = LanguageModel({folder!r}, tokenizer=tiny_tokenizer())
assert not lazy.dispatched
opened = open_model(lazy)
assert lazy.dispatched and opened.network is lazy._module and opened.tokenizer is lazy.tokenizer
assert torch.equal(logits(opened.network), logits(tiny_model()))
assert opened.source["wrapper"] == "nnsight LanguageModel", opened.source
own = tiny_tokenizer()
assert open_model(lazy, own).tokenizer is own

model = tiny_model()
assert open_model(NNsight(model), own).network is model
def refused(wrapper):
    try:
        open_model(wrapper)
    except UnsupportedModel as error:
        assert "holds 1 stored edit(s)" in str(error), error
        return True

with lazy.edit(inplace=True):
    lazy.model.layers[1].output[:] = 0
assert refused(lazy)
lazy.clear_edits()
with lazy.edit() as (_, edited):
    edited.model.layers[1].output[:] = 0
assert refused(edited)
assert open_model(lazy).network is lazy._module
print("done")
"""


def test_nnsight_models_are_dispatched_not_copied_and_nnsight_is_not_imported(tmp_path: Path):
    pytest.importorskip("nnsight")
    tiny_folder(tmp_path / "m")
    code = NNSIGHT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path / "m"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr
