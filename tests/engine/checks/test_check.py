"""The anatomy: what a table or a guess says is believed only where the model behaves so."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from causal_tracing.engine.checks.check import Checkup, accept, check, prove
from causal_tracing.engine.checks.findings import Finding
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.errors import ComponentNotOffered, OutOfMemory, UnsupportedModel
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import COMPONENTS, MEDIATORS, Site
from causal_tracing.models import architectures as anatomy
from causal_tracing.models.architectures import TABLE, Anatomy, Layout
from causal_tracing.models.model import Model
from causal_tracing.testing import Copy, Neuron, Neurons, ToyLayer, ToyNetwork, ToyTokenizer, circuit, lookup
from families import FAMILIES, Family, build

BY_NAME = {family.name: family for family in FAMILIES}
TOKENIZER = ToyTokenizer([f"w{n}" for n in range(97)])
CLEAN, CORRUPT = Run((5, 17, 42, 11, 60)), Run((5, 17, 42, 13, 60))


def load(name: str, network: nn.Module | None = None) -> Model:
    return accept(network or build(BY_NAME[name]), TOKENIZER, name=name)


def expected_components(family: Family) -> tuple[str, ...]:
    if not family.additive:
        return ("resid_pre", "resid_post")
    return tuple(name for name in COMPONENTS if name != "resid_mid" or family.residual == "sequential")


@pytest.mark.parametrize("calls", range(16))
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
        model = accept(build(family, attention), TOKENIZER, name=family.name)
        assert model.anatomy.components == expected_components(family)
        assert model.anatomy.cut
        assert model.anatomy.detected == (not family.known)
        assert model.num_layers == 4


@pytest.mark.parametrize(
    "name", ["falcon", "falcon-rw", "bloom", "mpt", "opt", "gemma2", "gpt_neo", "granite", "llama"]
)
def test_known_families_are_found_by_the_table(name):
    model = load(name)
    path, layout = TABLE[model.anatomy.family]
    assert model.anatomy.layers == path
    assert model.anatomy.layout == (layout if BY_NAME[name].residual == "sequential" else replace(layout, mid=None))


def test_an_unknown_family_is_found_by_detection():
    found = load("deepseek_v3").anatomy
    assert found.detected
    assert (found.layout.attn, found.layout.mlp, found.layout.mid) == ("self_attn", "mlp", "post_attention_layernorm")


# Without its entry in the table, a family is found by its names and by what it does.
@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "phi", "gpt2", "cohere", "mixtral"])
def test_detection_finds_what_the_table_says(name, monkeypatch):
    known = load(name).anatomy
    monkeypatch.delitem(TABLE, known.family)
    found = load(name).anatomy
    assert found.detected
    assert found.components == known.components
    assert (found.layers, found.layout.attn, found.layout.mlp) == (known.layers, known.layout.attn, known.layout.mlp)
    assert found.layout.z == known.layout.z
    norms_after = name in ("gemma2", "olmo2")  # there the MLP's last projection is not what it contributes
    assert found.layout.neurons == (None if norms_after else known.layout.neurons)


@pytest.mark.parametrize("name", ["opt-350m", "mamba", "falcon_h1"])
@pytest.mark.parametrize("component", ["attn_out", "resid_mid", "mlp_out"])
def test_what_a_model_does_not_have_is_refused_by_name(name, component):
    model = load(name)
    message = (
        rf"{component} is not offered on this model \({model.anatomy.family}\): no modules were found whose outputs "
        r"add up to what its layers add\. Offered: resid_pre, resid_post[,.]"
    )
    with pytest.raises(ComponentNotOffered, match=message):
        patched(model, component, [3])


def test_parallel_layers_have_no_middle():
    message = (
        r"resid_mid is not offered on this model \(gpt_neox\): its attention and MLP read the same stream "
        r"\(parallel layers\)\. Offered: resid_pre, attn_out, mlp_out, resid_post, q, k, v, pattern, z, neurons\."
    )
    with pytest.raises(ComponentNotOffered, match=message):
        patched(load("gpt_neox"), "resid_mid", [3])


@pytest.mark.parametrize("name", ["opt-350m", "mamba", "falcon_h1"])
def test_whole_layers_work_where_their_parts_cannot_be_told(name):
    model = load(name)
    donor = evaluate(model, [World(CLEAN, (), (4,))], lambda logits, _: logits.flatten(1)).values[0]
    found = patched(model, "resid_post", [3, 4])
    torch.testing.assert_close(torch.tensor(found), torch.tensor(donor), rtol=0, atol=1e-4)


def patched(model: Model, component: str, positions: list[int]):
    edits = tuple(Edit(Site(component, 1, position), From(CLEAN, position)) for position in positions)
    return evaluate(model, [World(CORRUPT, edits, (4,))], lambda logits, _: logits.flatten(1)).values[0]


# A table that is wrong is not believed, and what is right is found all the same.

WRONG = {
    "a norm for attention": ("llama", ("model.layers", Layout(attn="input_layernorm", mlp="mlp"))),
    "the MLP for attention": ("llama", ("model.layers", Layout(attn="mlp", mlp="mlp"))),
    "a projection for the MLP": ("llama", ("model.layers", Layout(attn="self_attn", mlp="mlp.up_proj"))),
    "exchanged": ("llama", ("model.layers", Layout(attn="mlp", mlp="self_attn", mid="post_attention_layernorm"))),
    "a middle before attention": (
        "llama",
        ("model.layers", Layout(attn="self_attn", mlp="mlp", mid="input_layernorm")),
    ),
    "paths that are not there": ("llama", ("model.layers", Layout(attn="attention", mlp="feed_forward"))),
    "layers that are not there": ("llama", ("transformer.h", Layout(attn="self_attn", mlp="mlp"))),
    "a path that holds no layers": ("llama", ("model", Layout(attn="self_attn", mlp="mlp"))),
    "attention before its norm": (
        "gemma2",
        ("model.layers", Layout(attn="self_attn", mlp="post_feedforward_layernorm")),
    ),
    "no scale": ("granite", ("model.layers", Layout(attn="self_attn", mlp="mlp", mid="post_attention_layernorm"))),
}


@pytest.mark.parametrize("mistake", [name for name in WRONG if name != "no scale"])
def test_a_wrong_table_is_not_believed(mistake, monkeypatch):
    family, entry = WRONG[mistake]
    right = load(family).anatomy
    monkeypatch.setitem(TABLE, family, entry)
    found = load(family).anatomy
    assert found.detected
    assert found.components == COMPONENTS
    assert (found.layout.attn, found.layout.mlp, found.layout.mid) == (
        right.layout.attn,
        right.layout.mlp,
        right.layout.mid,
    )


def test_attention_and_mlp_exchanged_in_parallel_layers_are_told_apart(monkeypatch):
    """Their sum is the same either way; but an MLP does not see what earlier tokens hold."""
    entry = ("model.layers", Layout(attn="mlp", mlp="self_attn"))
    monkeypatch.setitem(TABLE, "phi", entry)
    found = load("phi").anatomy
    assert found.detected
    assert (found.layout.attn, found.layout.mlp) == ("self_attn", "mlp")


def test_a_table_without_the_layers_scale_is_not_believed(monkeypatch):
    family, entry = WRONG["no scale"]
    monkeypatch.setitem(TABLE, family, entry)
    found = load(family).anatomy
    assert found.components == ("resid_pre", "resid_post")
    assert "add up to what its layers add" in dict(found.refused)["mlp_out"]


def test_a_component_that_is_offered_is_not_refused():
    found = Anatomy(family="toy", layers="layers", layout=Layout()).refuse("mlp_out", "it is not there.")
    found.require("resid_post")
    with pytest.raises(ComponentNotOffered, match=r"mlp_out is not offered on this model \(toy\): it is not there\."):
        found.require("mlp_out")


# Models that cannot be trusted.


def test_a_model_that_looks_ahead_is_refused():
    network = build(BY_NAME["llama"], "sdpa")
    for layer in network.get_submodule("model.layers").children():
        setattr(layer.get_submodule("self_attn"), "is_causal", False)  # noqa: B010
    with pytest.raises(UnsupportedModel, match="llama is not causal: an edit changes what earlier tokens predict"):
        load("llama", network)


def test_a_toy_that_looks_ahead_is_refused():
    class Ahead(Copy):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states.flip(1)).flip(1)

    network = random_toy(ToyLayer)
    network.layers[2] = ToyLayer(Ahead(WIDTH, {n: n for n in range(WIDTH)}, back=1), nn.Identity())
    with pytest.raises(UnsupportedModel, match="toy is not causal"):
        accept(network, ToyTokenizer(WORDS), name="toy")


WIDTH, WORDS = 16, [f"w{n}" for n in range(20)]


def random_toy(layer: type[ToyLayer]) -> ToyNetwork:
    """Three layers with random neurons and copies."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def neurons() -> Neurons:
        weights = [(random(WIDTH).tolist(), random(WIDTH).tolist()) for _ in range(8)]
        return Neurons(
            WIDTH, [Neuron(reads=dict(enumerate(reads)), writes=dict(enumerate(writes))) for reads, writes in weights]
        )

    def copies() -> Copy:
        return Copy(WIDTH, {n: (n + 3) % WIDTH for n in range(WIDTH)}, back=1)

    return ToyNetwork(
        embedding=random(len(WORDS), WIDTH),
        layers=[layer(copies(), neurons()) for _ in range(3)],
        head=random(WIDTH, len(WORDS)),
        bias=torch.zeros(len(WORDS)),
    )


class DeafToMlp(ToyLayer):
    """Shows its MLP's output to hooks, and then adds another that they cannot change."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        middle = hidden_states + self.self_attn(hidden_states)
        self.mlp(middle)
        return middle + self.mlp.forward(middle)


class DeafToAttention(ToyLayer):
    """The same for attention."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.self_attn(hidden_states)
        middle = hidden_states + self.self_attn.forward(hidden_states)
        return middle + self.mlp(middle)


def test_a_network_of_ones_own_is_accepted():
    model = accept(random_toy(ToyLayer), ToyTokenizer(WORDS), name="toy")
    assert model.anatomy.components == COMPONENTS
    assert model.anatomy.detected


@pytest.mark.parametrize(("layer", "component"), [(DeafToMlp, "mlp_out"), (DeafToAttention, "attn_out")])
def test_a_part_that_cannot_be_written_is_refused_by_name(layer, component):
    model = accept(random_toy(layer), ToyTokenizer(WORDS), name="toy")
    assert model.anatomy.components == tuple(name for name in COMPONENTS if name != component)
    message = rf"{component} is not offered .* its check failed \(a large random write changes the logits: measured 0, "
    with pytest.raises(ComponentNotOffered, match=message):
        model.anatomy.require(component)


# Law 22: a part that adds nothing (a zero projection, an inserted identity block) is there all the same.
def test_a_part_that_adds_nothing_is_offered():
    network = build(BY_NAME["llama"])
    with torch.no_grad():
        for path in ("self_attn.o_proj", "mlp.down_proj"):
            network.get_parameter(f"model.layers.2.{path}.weight").zero_()
    assert load("llama", network).anatomy.components == COMPONENTS


@pytest.mark.parametrize("make", [lambda: circuit("xor"), lookup], ids=["xor", "lookup"])
def test_the_toys_hold_what_is_checked_of_real_models(make):
    model, _ = make()
    accepted = accept(model.network, model.tokenizer, name=model.name)
    assert accepted.anatomy.components == model.anatomy.components
    assert accepted.anatomy.cut
    assert accepted.anatomy.layout == model.anatomy.layout


def test_a_network_whose_layers_cannot_be_found_is_refused():
    network = random_toy(ToyLayer)
    network.config = replace(network.config, num_hidden_layers=7)
    message = r"ToyNetwork has no list of 7 layers \(num_hidden_layers of its configuration\)"
    with pytest.raises(UnsupportedModel, match=message):
        accept(network, ToyTokenizer(WORDS), name="toy")


def test_a_vocabulary_that_is_too_small_is_refused():
    with pytest.raises(UnsupportedModel, match="The vocabulary has 6 ordinary tokens; a check needs 11"):
        accept(random_toy(ToyLayer), ToyTokenizer(WORDS[:6]), name="toy")


def test_vision_layers_are_not_taken_for_the_decoder():
    network = build(BY_NAME["gemma3"])
    network.config.get_text_config().num_hidden_layers = 4
    assert anatomy._layers_path(network) == "model.language_model.layers"


# What is said of a check.


def test_a_checkup_says_what_was_found():
    checkup = check(load("deepseek_v3"))
    said = checkup.to_dict()
    assert (said["model"], said["family"], said["layers"]) == ("deepseek_v3", "deepseek_v3", 4)
    assert (said["found_by"], said["components"]) == ("detection", list(COMPONENTS))
    assert said["whole_layers_are_cuts"]
    assert all(finding["holds"] for finding in said["findings"])
    checked = {(finding.name, finding.component) for finding in checkup.findings}
    for component in COMPONENTS:
        assert ("its own activations change nothing", component) in checked
        assert ("a large random write changes the logits", component) in checked
        assert ("nothing before an edit changes", component) in checked


def test_a_finding_says_which_way_its_bound_is():
    model = check(load("llama")).model
    least = Finding(name="moves", components=("z", "v"), difference=0.5, bound=0.1, at_least=True)
    most = replace(least, name="a large difference", at_least=False)
    assert (least.holds, most.holds) == (True, False)
    assert not replace(least, difference=float("nan")).holds
    said = str(Checkup(model=model, findings=(least, most))).splitlines()[-2:]
    assert [line.split()[-3:] for line in said] == [["≥", "1e-01", "holds"], ["≤", "1e-01", "FAILS"]]
    assert least.to_dict() == {"name": "moves", "component": "z, v", "difference": 0.5, "bound": 0.1, "holds": True}


def test_a_checkup_names_what_was_refused():
    said = check(load("mamba")).to_dict()
    assert sorted(said["refused"]) == sorted(["attn_out", "mlp_out", "resid_mid", *MEDIATORS])
    assert said["components"] == ["resid_pre", "resid_post"]
    assert said["mediators"] == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "granite"])
def test_other_types_of_numbers_are_accepted(name, dtype):
    model = load(name, build(BY_NAME[name], dtype=dtype))
    assert model.anatomy.components == COMPONENTS
