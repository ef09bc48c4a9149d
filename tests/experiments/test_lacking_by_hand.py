"""What models that somebody wrote lack is said of each, by what was found."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

import causal_tracing as ct
from causal_tracing.errors import ComponentNotOffered, EngineNote, UnsupportedModel
from loaded import WORDS
from model_types.recipes import build
from own_networks import PAIR, WIDTH, Layer, Own, made
from tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")


class LastLogits(Own):
    def forward(self, input_ids: Tensor) -> Any:
        return CausalLMOutput(logits=self.logits(input_ids)[:, -1:])


class FlatLogits(Own):
    def forward(self, input_ids: Tensor) -> Any:
        return CausalLMOutput(logits=self.logits(input_ids).flatten(0, 1))


class NoLogits(Own):
    def forward(self, input_ids: Tensor) -> Any:
        return BaseModelOutput(last_hidden_state=self.logits(input_ids))


class LayersGiveObjects(Own):
    give = staticmethod(lambda stream: SimpleNamespace(stream=stream))
    take = staticmethod(lambda given: given.stream)


class LayersGiveWeightsFirst(Own):
    give = staticmethod(lambda stream: (torch.zeros(1, 1, 6, 6), stream))
    take = staticmethod(lambda given: given[1])


class Placed(Layer):
    """Takes positions before the stream."""

    def forward(self, places: Tensor, stream: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(stream + places)


class LayersTakePlacesFirst(Own):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Placed(type(self).give) for _ in range(3)])

    def logits(self, tokens: Tensor) -> Tensor:
        stream, places = self.words(tokens), self.places(torch.arange(tokens.shape[1]))[None]
        for block in self.blocks:
            stream = block(places, stream)
        return self.out(stream)


class OneLayerTwice(Own):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[2] = self.blocks[0]


class ResidualOutside(Own):
    """What its layers give is added to the stream by the network."""

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens)
        for block in self.blocks:
            stream = stream + block(stream)
        return self.out(stream)


class NoHead(Own):
    """Its backbone alone: as many numbers a token as the stream is wide."""

    def forward(self, input_ids: Tensor) -> Any:
        return self.logits(input_ids)[..., :WIDTH]


class NoWords(Own):
    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


class Summed(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.cumsum(1))


class LayersAreLists(Own):
    """Of attention and an MLP, which the network adds to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([nn.LayerNorm(WIDTH), Summed(WIDTH, WIDTH)]) for _ in range(3)])

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens)
        for norm, part in self.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            stream = stream + part(norm(stream))
        return self.out(stream)


class PastTheirHooks(Own):
    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens)
        for block in self.blocks:
            stream = block.forward(stream)
        return self.out(stream)


class ComplexNumbers(Own):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(WIDTH, WIDTH, dtype=torch.complex64) for _ in range(2)])

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens) + 0j
        for block in self.blocks:
            stream = stream + block(stream.cumsum(1))
        return self.out(stream.real)


class OneRow(Own):
    def forward(self, input_ids: Tensor) -> Any:
        assert len(input_ids) == 1, "one row at a time"
        return super().forward(input_ids)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (LastLogits, r"for 6 tokens it gives the logits of 1\. Let its forward give those of every token"),
        (FlatLogits, r"its forward returns a CausalLMOutput of logits with the shape \[6, 97\]\."),
        (NoLogits, r"logits \[row, token, word\] are needed, and .* a BaseModelOutput of last_hidden_state\."),
        (
            LayersGiveObjects,
            r"no list of layers that a text passes: members of blocks give a SimpleNamespace, and no stream\.",
        ),
        (LayersGiveWeightsFirst, r"member 0 of blocks is given \[1, 6, 32\] numbers and gives \[1, 1, 6, 6\]"),
        (LayersTakePlacesFirst, r"what one of its blocks gives is the next one's argument 1, .* take the stream first"),
        (OneLayerTwice, r"uses one module as several layers: of 3 entries of blocks, 2 are modules of their own\."),
        (ResidualOutside, r"its logits are made of more than what the last of its blocks gives .* added outside of"),
        (NoHead, r"reads 97 words, and gives 32 numbers for each token, which are no logits of words\."),
        (LayersAreLists, r"members of its blocks are lists of modules, which the network itself makes layers of\."),
        (
            PastTheirHooks,
            r"no list of layers that a text passes\. .* called \(by their forward alone, .* no hook\)",
        ),
        (ComplexNumbers, r"members of blocks give a tensor of complex numbers, and no stream\."),
        (OneRow, r"a batch of 2 prompts of 6 random tokens ends in AssertionError: one row at a time\. Such prompts"),
        (NoWords, r"Give its class a get_input_embeddings\(\) that returns it\."),
    ],
)
def test_what_it_lacks_is_named(kind: Any, said: str):
    with pytest.raises(UnsupportedModel, match=said):
        ct.load(made(kind), tokenizer=WORDS)


class SharedMlp(Own):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[2].mlp = self.blocks[0].mlp


class NormBehind(Own):
    def __init__(self) -> None:
        super().__init__()
        self.blocks.append(nn.LayerNorm(WIDTH))


@pytest.mark.parametrize(
    ("kind", "component", "said"),
    [
        (
            SharedMlp,
            "mlp_out",
            r"Layers share modules \(mlp of layer 2 is mlp of layer 0\), and what is written",
        ),
        (NormBehind, "attn_out", r"in layer 3 no module was found .*\. That layer is a LayerNorm alone\."),
    ],
)
def test_what_its_modules_are_is_said_of_a_part_that_is_missing(kind: Any, component: str, said: str):
    with pytest.raises(ComponentNotOffered, match=said):
        ct.load(made(kind), tokenizer=WORDS).anatomy.require(component)


class SharedNorm(Own):
    """One norm reads before attention and before the MLP: no module alone is given the stream between."""

    def __init__(self) -> None:
        super().__init__()
        blocks: Any = self.blocks
        for block in blocks:
            block.norms[1] = block.norms[0]


class LessTheMean(Layer):
    def forward(self, stream: Tensor) -> Any:
        q, k, v = self.joined(self.norms[0](stream)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        stream = stream + self.attn(heads.transpose(1, 2).flatten(2))
        mean = stream.cumsum(1) / torch.arange(1, stream.shape[1] + 1)[:, None]
        return stream + self.mlp(self.norms[1](stream - mean))


class NormOverTokens(Own):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([LessTheMean(lambda stream: stream) for _ in range(3)])


@pytest.mark.parametrize("kind", [SharedNorm, NormOverTokens])
def test_what_reads_behind_attention_is_not_called_parallel(kind: Any):
    anatomy = ct.load(made(kind), tokenizer=WORDS).anatomy
    assert {"attn_out", "mlp_out"} <= {*anatomy.components}
    assert [layout.sums for layout in anatomy.layouts] == [()] * 3
    with pytest.raises(ComponentNotOffered, match=r"no module is given the stream between its attention and MLP"):
        anatomy.require("resid_mid")


class FewPlaces(Own):
    """Its configuration does not say how many tokens it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(6, WIDTH)


def test_a_prompt_on_which_the_network_fails_is_said():
    model = ct.load(made(FewPlaces), tokenizer=WORDS)
    with pytest.raises(UnsupportedModel, match=r"a prompt of 7 random tokens ends in IndexError: .* Yours are as long"):
        ct.trace(model, PAIR, progress=False)


class Halves(Own):
    """Layers in two lists."""

    def __init__(self) -> None:
        super().__init__()
        self.further = nn.ModuleList([Layer(type(self).give) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH)])

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens)
        for block in (*self.blocks, *self.further, *self.norms):
            stream = block(stream)
        return self.out(stream)


def test_layers_in_several_lists_are_said():
    with pytest.warns(EngineNote, match=r"Those of blocks alone are traced, .* such as those of further\."):
        assert ct.load(made(Halves), tokenizer=WORDS).num_layers == 3


def test_a_type_that_nothing_is_known_of_is_said():
    network: Any = tiny_model("llama", num_hidden_layers=1)
    network.to(torch.float8_e4m3fn)
    with pytest.raises(UnsupportedModel, match=r"cannot be traced in float8_e4m3fn, .* Load it in float64, float32"):
        ct.load(network, tokenizer=WORDS)


def test_lanes_that_are_folded_into_the_width_are_said():
    anatomy = ct.load(build("qwen4_exp_text"), tokenizer=WORDS).anatomy
    assert {"resid_pre", "resid_post"} == {*anatomy.components}
    with pytest.raises(
        ComponentNotOffered, match=r"A token's stream has 128 numbers, 4 lanes of 32: what a part gives"
    ):
        anatomy.require("mlp_out")
