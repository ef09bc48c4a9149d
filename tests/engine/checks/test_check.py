"""The anatomy: layers and their parts are found by what the model does, and believed where patching bears it out."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causal_tracing.engine.checks.check import Checkup, accept, check, prove
from causal_tracing.engine.checks.contributions import Explained, Step
from causal_tracing.engine.checks.findings import Finding
from causal_tracing.engine.checks.layouts import layout_of, refusals
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.errors import ComponentNotOffered, OutOfMemory, UnsupportedModel
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import ATTENTION, MEDIATORS, Site
from causal_tracing.models.anatomy import Anatomy, Layout
from causal_tracing.models.model import Model
from causal_tracing.testing import ToyTokenizer
from families import FAMILIES, build
from loaded import BY_NAME, shared

WHOLE = BY_NAME["llama"].components
TOKENIZER = ToyTokenizer([f"w{n}" for n in range(97)])
CLEAN, CORRUPT = Run((5, 17, 42, 11, 60)), Run((5, 17, 42, 13, 60))


def load(name: str, network: nn.Module | None = None) -> Model:
    return accept(network or build(BY_NAME[name]), TOKENIZER, name=name)


@pytest.mark.parametrize("calls", range(24))
def test_memory_that_runs_out_is_no_refusal(monkeypatch, calls):
    """Wherever in the checks it happens: a model is never offered with less than it has."""
    seen, network = [], build(BY_NAME["gpt_neox"])
    real = network.forward

    def forward(*args, **kwargs):
        seen.append(1)
        if len(seen) > calls:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes.")
        return real(*args, **kwargs)

    monkeypatch.setattr(network, "forward", forward)
    with pytest.raises(OutOfMemory, match="does not fit into|do not fit into"):
        accept(network, TOKENIZER, name="gpt_neox")


def test_memory_that_runs_out_while_heads_are_proved_is_no_refusal(monkeypatch):
    model = load("llama")
    monkeypatch.setattr(model.network, "forward", lambda **_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(OutOfMemory, match="does not fit into|do not fit into"):
        prove(model, ["z"])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_family_offers_what_it_has(family):
    for attention in family.attention:
        model = shared(family.name, attention)
        assert model.anatomy.components == family.components
        assert model.anatomy.cut
        assert model.num_layers == 4


# By hand: the path of the layers, what adds to the stream, the module that reads the middle, and the last projections.
FOUND = {
    "llama": ("model.layers", "self_attn", "mlp", "post_attention_layernorm", "self_attn.o_proj", "mlp.down_proj"),
    "gpt2": ("transformer.h", "attn", "mlp", "ln_2", "attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("gpt_neox.layers", "attention", "mlp", None, "attention.dense", "mlp.dense_4h_to_h"),
    "gptj": ("transformer.h", "attn", "mlp", None, "attn.out_proj", "mlp.fc_out"),
    "gpt_neo": ("transformer.h", "attn", "mlp", "ln_2", "attn.attention.out_proj", "mlp.c_proj"),
    "falcon": ("transformer.h", "self_attention", "mlp", None, "self_attention.dense", "mlp.dense_4h_to_h"),
    "phi": ("model.layers", "self_attn", "mlp", None, "self_attn.dense", "mlp.fc2"),
    "mixtral": ("model.layers", "self_attn", "mlp", "post_attention_layernorm", "self_attn.o_proj", None),
    "olmo2": (
        "model.layers",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "mlp",
        "self_attn.o_proj",
        "mlp.down_proj",
    ),
    "gemma3": (
        "model.language_model.layers",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "pre_feedforward_layernorm",
        "self_attn.o_proj",
        "mlp.down_proj",
    ),
    "bloom": (
        "transformer.h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "post_attention_layernorm",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
    ),
    "mpt": ("transformer.blocks", "attn", "ffn.down_proj", "norm_2", "attn.out_proj", "ffn.down_proj"),
    "opt": ("model.decoder.layers", "self_attn", "fc2", "final_layer_norm", "self_attn.out_proj", "fc2"),
    "opt-350m": ("model.decoder.layers", "self_attn", "fc2", "self_attn_layer_norm", "self_attn.out_proj", "fc2"),
}


@pytest.mark.parametrize("name", FOUND)
def test_layers_and_their_parts_are_found_by_what_they_do(name):
    found = shared(name).anatomy
    assert len({*found.layouts}) == 1
    layout = found.layouts[0]
    assert (found.layers, layout.attn, layout.mlp, layout.mid, layout.z, layout.neurons) == FOUND[name]
    assert layout.mid_out == (name == "opt-350m")  # it norms its sums: the stream is what comes out


def test_names_do_not_decide():
    """Attention called mlp, an MLP called self_attn, layers called vision_encoder: what they do is what they are."""
    network = build(BY_NAME["llama"])
    for layer in network.model.layers:
        parts = layer._modules
        parts["self_attn"], parts["mlp"] = parts["mlp"], parts["self_attn"]
    kind = type(network.model.layers[0])

    class Renamed(kind):
        def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            middle = hidden_states + self.mlp(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
            return middle + self.self_attn(self.post_attention_layernorm(middle))

    for layer in network.model.layers:
        layer.__class__ = Renamed
    found = load("llama", network).anatomy
    assert (found.layouts[0].attn, found.layouts[0].mlp) == ("mlp", "self_attn")
    assert found.components == BY_NAME["llama"].components


def test_parts_may_differ_from_layer_to_layer():
    found = shared("qwen3_next").anatomy
    assert [layout.attn for layout in found.layouts] == ["linear_attn", "self_attn"] * 2


def test_a_layer_of_one_part_is_a_mixer():
    found = shared("mamba").anatomy
    assert [layout.mixer for layout in found.layouts] == ["mixer"] * 4
    message = (
        r"attn_out is not offered on this model \(mamba\): its layers have one part each: mixer_out is what it adds\. "
        r"Offered: resid_pre, mixer_out, resid_post\."
    )
    with pytest.raises(ComponentNotOffered, match=message):
        patched(shared("mamba"), "attn_out", [3])


def test_of_two_parts_that_mix_the_one_that_is_called_attention_is_it():
    layout = shared("falcon_h1").anatomy.layouts[0]
    assert (layout.attn, layout.mlp, layout.mid) == ("self_attn", "feed_forward", "pre_ff_layernorm")


def test_of_two_parts_that_mix_and_have_no_such_name_neither_is_attention():
    step = Step(base=("", False), gain=1.0, parts=(("one", 1.0), ("two", 1.0)), reader="norm")
    last = Step(base=("norm", False), gain=1.0, parts=(("three", 1.0),), reader=None)
    found = Explained(way=(step, last), whole=True)
    layout = layout_of(found, {"one", "two"})
    assert (layout.attn, layout.mlp, layout.mid) == (None, "three", "norm")
    # Of the layers that a text passes, which may be some of all.
    refused = {each.component: each for each in refusals({5: layout}, {5: found})}
    assert refused["attn_out"].layer == 5
    assert refused["attn_out"].reason == (
        "in layer 5 no module was found whose output alone is added as attention's is; what it adds comes from one and "
        "two and three."
    )


def test_parallel_layers_have_no_middle():
    message = (
        r"resid_mid is not offered on this model \(gpt_neox\): its attention and MLP read the same stream "
        r"\(parallel layers\)\. Offered: resid_pre, attn_out, mlp_out, resid_post, q, k, v, pattern, z, neurons\."
    )
    with pytest.raises(ComponentNotOffered, match=message):
        patched(shared("gpt_neox"), "resid_mid", [3])


@pytest.mark.parametrize("name", ["opt-350m", "mamba", "falcon_h1"])
def test_whole_layers_work_where_their_parts_cannot_be_told(name):
    model = shared(name)
    donor = evaluate(model, [World(CLEAN, (), (4,))], lambda logits, _: logits.flatten(1)).values[0]
    found = patched(model, "resid_post", [3, 4])
    torch.testing.assert_close(torch.tensor(found), torch.tensor(donor), rtol=0, atol=1e-4)


def patched(model: Model, component: str, positions: list[int]):
    edits = tuple(Edit(Site(component, 1, position), From(CLEAN, position)) for position in positions)
    return evaluate(model, [World(CORRUPT, edits, (4,))], lambda logits, _: logits.flatten(1)).values[0]


def test_the_layers_scale_is_found():
    layout = shared("granite").anatomy.layouts[0]
    assert (layout.attn_scale, layout.mlp_scale, layout.gain) == (0.5, 0.5, 1.0)


def test_a_component_that_is_offered_is_not_refused():
    found = Anatomy(family="toy", layers="layers", layouts=(Layout(),)).refuse("mlp_out", "it is not there.")
    found.require("resid_post")
    with pytest.raises(ComponentNotOffered, match=r"mlp_out is not offered on this model \(toy\): it is not there\."):
        found.require("mlp_out")


# Models that cannot be trusted.


def test_a_model_that_looks_ahead_is_refused():
    network = build(BY_NAME["llama"], "sdpa")
    for layer in network.get_submodule("model.layers").children():
        setattr(layer.get_submodule("self_attn"), "is_causal", False)  # noqa: B010
    with pytest.raises(UnsupportedModel, match="llama is not causal: a later token changes what earlier ones predict"):
        load("llama", network)


# Law 22: a part that adds nothing (a zero projection, an inserted identity block) is there all the same.
def test_a_part_that_adds_nothing_is_offered():
    network = build(BY_NAME["llama"])
    with torch.no_grad():
        for path in ("self_attn.o_proj", "mlp.down_proj"):
            network.get_parameter(f"model.layers.2.{path}.weight").zero_()
    assert load("llama", network).anatomy.components == WHOLE


@pytest.mark.parametrize("context", [3, 4, 5])
def test_a_context_of_few_tokens_will_do(context):
    network = build(replace(BY_NAME["gpt2"], config=BY_NAME["gpt2"].config | {"max_position_embeddings": context}))
    assert accept(network, TOKENIZER, name="short").anatomy.components == WHOLE


@pytest.mark.parametrize("masked", [-torch.inf, -1e9], ids=str)
def test_words_that_are_masked_are_no_part_of_the_scale(masked):
    """A vocabulary that is padded, or words that are forbidden: everything holds as without them."""
    network = build(BY_NAME["gpt2"])  # on which the engines differ by rounding

    def mask(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
        return torch.cat([logits[..., :90], torch.full_like(logits[..., 90:], masked)], -1)

    network.lm_head.register_forward_hook(mask)
    model = load("gpt2", network)
    assert model.anatomy.components == WHOLE
    assert model.agreement is not None
    assert max(model.agreement.differences.values()) > 1e-9  # of the words that are said
    assert model.agreement.against(WHOLE) is None


def test_vision_layers_are_not_taken_for_the_decoder():
    network = build(BY_NAME["gemma3"])
    network.config.get_text_config().num_hidden_layers = 4
    assert load("gemma3", network).anatomy.layers == "model.language_model.layers"


# What is said of a check.


def test_a_checkup_says_what_was_found():
    checkup = check(load("deepseek_v3"))
    said = checkup.to_dict()
    assert (said["model"], said["family"], said["layers"]) == ("deepseek_v3", "deepseek_v3", 4)
    assert (said["layers_at"], said["components"]) == ("model.layers", list(WHOLE))
    assert said["whole_layers_are_cuts"]
    assert all(finding["holds"] for finding in said["findings"])
    checked = {(finding.name, finding.component) for finding in checkup.findings}
    for component in WHOLE:
        assert ("its own activations change nothing", component) in checked
        assert ("a large random write changes the logits", component) in checked
        assert ("nothing before an edit changes", component) in checked


def test_a_finding_says_which_way_its_bound_is():
    model = check(load("llama")).model
    least = Finding(name="moves", components=("z", "v"), difference=0.5, bound=0.1, at_least=True)
    most = replace(least, name="a large difference", at_least=False)
    assert (least.holds, most.holds) == (True, False)
    assert not replace(least, difference=float("nan")).holds
    said = str(Checkup(model=model, findings=(least, most))).splitlines()[-4:]
    assert said[::2] == ["moves", "a large difference"]
    assert [line.split()[-3:] for line in said[1::2]] == [["≥", "1e-01", "holds"], ["≤", "1e-01", "FAILS"]]
    assert least.to_dict() == {"name": "moves", "component": "z, v", "difference": 0.5, "bound": 0.1, "holds": True}


def test_a_checkup_names_what_was_refused():
    said = check(load("mamba")).to_dict()
    assert sorted(said["refused"]) == sorted(["attn_out", "mlp_out", "resid_mid", *MEDIATORS, ATTENTION])
    assert said["components"] == ["resid_pre", "mixer_out", "resid_post"]
    assert said["mediators"] == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "granite"])
def test_other_types_of_numbers_are_accepted(name, dtype):
    model = load(name, build(BY_NAME[name], dtype=dtype))
    assert model.anatomy.components == WHOLE


# Parts of a model stay in float32 whatever its type: the softmax of eager attention, a router of experts.
@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_what_is_rounded_in_float32_inside_a_float64_model_is_no_reason_to_refuse(name):
    network = build(BY_NAME[name], dtype=torch.float64)
    model = load(name, network)
    model, _ = prove(model, model.anatomy.mediators)
    assert (model.anatomy.components, model.anatomy.cut) == (WHOLE, True)
    assert set(MEDIATORS) - set(model.anatomy.mediators) <= {"neurons"}  # deepseek_v3 has experts
