"""Networks of one's own, and the package's toys: accepted, refused, or offered without what cannot be written."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from causal_tracing.engine.checks.check import accept
from causal_tracing.errors import ComponentNotOffered, UnsupportedModel
from causal_tracing.testing import Copy, Neuron, Neurons, ToyLayer, ToyNetwork, ToyTokenizer, circuit, lookup
from loaded import BY_NAME

WHOLE = BY_NAME["llama"].components
WIDTH, WORDS = 16, [f"w{n}" for n in range(20)]


def test_a_toy_that_looks_ahead_is_refused():
    class Ahead(Copy):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states.flip(1)).flip(1)

    network = random_toy(ToyLayer)
    network.layers[2] = ToyLayer(Ahead(WIDTH, {n: n for n in range(WIDTH)}, back=1), nn.Identity())
    with pytest.raises(UnsupportedModel, match="toy is not causal"):
        accept(network, ToyTokenizer(WORDS), name="toy")


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
    assert model.anatomy.components == WHOLE


@pytest.mark.parametrize(
    ("layer", "refused"), [(DeafToMlp, ("resid_mid", "mlp_out")), (DeafToAttention, ("attn_out",))], ids=["mlp", "attn"]
)
def test_a_part_that_cannot_be_written_is_refused_by_name(layer, refused):
    model = accept(random_toy(layer), ToyTokenizer(WORDS), name="toy")
    assert model.anatomy.components == tuple(name for name in WHOLE if name not in refused)
    message = rf"{refused[-1]} is not offered .* no module was found whose output alone is added as"
    with pytest.raises(ComponentNotOffered, match=message):
        model.anatomy.require(refused[-1])


@pytest.mark.parametrize("make", [lambda: circuit("xor"), lookup], ids=["xor", "lookup"])
def test_the_toys_hold_what_is_checked_of_real_models(make):
    model, _ = make()
    accepted = accept(model.network, model.tokenizer, name=model.name)
    assert accepted.anatomy.components == model.anatomy.components
    assert accepted.anatomy.cut
    assert [(each.attn, each.mlp, each.mid) for each in accepted.anatomy.layouts] == [
        (each.attn, each.mlp, each.mid) for each in model.anatomy.layouts
    ]


def test_what_the_configuration_counts_does_not_matter():
    network = random_toy(ToyLayer)
    network.config = replace(network.config, num_hidden_layers=7)
    assert accept(network, ToyTokenizer(WORDS), name="toy").num_layers == 3


def test_a_vocabulary_that_is_too_small_is_refused():
    with pytest.raises(UnsupportedModel, match="The vocabulary has 1 ordinary tokens; a check needs two"):
        accept(random_toy(ToyLayer), ToyTokenizer(WORDS[:1]), name="toy")


@pytest.mark.parametrize("words", [2, 5, 6, 8, 11])
def test_a_vocabulary_of_few_words_will_do(words):
    assert accept(random_toy(ToyLayer), ToyTokenizer(WORDS[:words]), name="toy").anatomy.components == WHOLE


class NearlyAdded(ToyLayer):
    """What its parts contribute is added a thousandth too large: parts that add up but for that are not its parts."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + 1.001 * (super().forward(hidden_states) - hidden_states)


def test_parts_that_nearly_add_up_have_their_scale():
    layouts = accept(random_toy(NearlyAdded), ToyTokenizer(WORDS), name="toy").anatomy.layouts
    for layout in layouts:
        assert (layout.attn_scale, layout.mlp_scale) == pytest.approx((1.001, 1.001), abs=1e-6)
