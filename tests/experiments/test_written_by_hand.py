"""Models that somebody wrote, or changed: whatever they take, give and wrap, what is offered is exact."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

import causal_tracing as ct
from causal_tracing.errors import ComponentNotOffered, EngineNote, InvalidPair, UnsupportedModel
from loaded import WORDS
from tiny import tiny_model

CLEAN, CORRUPT = (5, 17, 32, 11, 40, 33, 8), (5, 23, 32, 11, 45, 33, 8)
PAIR = ct.Pair(
    clean=" ".join(f"w{n}" for n in CLEAN), corrupt=" ".join(f"w{n}" for n in CORRUPT), answer=" w9", foil=" w12"
)
AT = {"metric": "logit_diff", "pair": "pair-0"}
WIDTH, HEADS = 32, 4
Change = Callable[[Tensor], Tensor]
pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")


class Layer(nn.Module):
    """Attention of its own, and an MLP; gives the stream as `give` makes it."""

    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.joined, self.attn = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, stream: Tensor) -> Any:
        q, k, v = self.joined(self.norms[0](stream)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        stream = stream + self.attn(heads.transpose(1, 2).flatten(2))
        return self.give(stream + self.mlp(self.norms[1](stream)))


class Own(PreTrainedModel):
    """Names neither its layers nor its head as others do."""

    config_class = PreTrainedConfig
    give: Callable[[Tensor], Any] = staticmethod(lambda stream: stream)
    take: Callable[[Any], Tensor] = staticmethod(lambda given: given)

    def __init__(self) -> None:
        config: Any = PreTrainedConfig()
        config.vocab_size, config.hidden_size, config.num_attention_heads = 97, WIDTH, HEADS
        super().__init__(config)
        self.words, self.places = nn.Embedding(97, WIDTH), nn.Embedding(32, WIDTH)
        self.blocks = nn.ModuleList([Layer(type(self).give) for _ in range(3)])
        self.out = nn.Linear(WIDTH, 97)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.25)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            stream = type(self).take(block(stream))
        return self.out(stream)

    def forward(self, input_ids: Tensor) -> Any:
        """As each takes and gives it."""
        return CausalLMOutput(logits=self.logits(input_ids))


class GivesATensor(Own):
    def forward(self, input_ids: Tensor, temperature: float = 1.0) -> Tensor:
        return self.logits(input_ids) / temperature


class GivesATuple(Own):
    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        return self.logits(input_ids), "state"


class GivesADict(Own):
    def forward(self, input_ids: Tensor, use_cache: bool = True) -> Any:
        assert not use_cache
        return {"past": None, "logits": self.logits(input_ids)}


class TakesAnotherName(Own):
    def forward(self, idx: Tensor, targets: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return CausalLMOutput(logits=self.logits(idx))


class TakesNamesAlone(Own):
    def forward(self, *, input_ids: Tensor, **_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return CausalLMOutput(logits=self.logits(input_ids))


class LayersGiveLists(Own):
    give = staticmethod(lambda stream: [stream, None])
    take = staticmethod(lambda given: given[0])


class Named(NamedTuple):
    stream: Tensor
    weights: Tensor | None = None


class LayersGiveNamedTuples(Own):
    give = staticmethod(Named)
    take = staticmethod(lambda given: given.stream)


class LayersGiveDicts(Own):
    give = staticmethod(lambda stream: {"length": stream.shape[1], "stream": stream})
    take = staticmethod(lambda given: given["stream"])


class LayersGiveOutputs(Own):
    give = staticmethod(lambda stream: BaseModelOutput(last_hidden_state=stream))
    take = staticmethod(lambda given: given.last_hidden_state)


@dataclass(frozen=True)
class Given:
    length: int
    stream: Tensor


class LayersGiveDataclasses(Own):
    give = staticmethod(lambda stream: Given(stream.shape[1], stream))
    take = staticmethod(lambda given: given.stream)


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval()


def own_logits(network: Any, tokens: Sequence[int]) -> Tensor:
    return network.logits(torch.tensor([tokens]))[0, -1]


def restored_by_hand(network: Any, path: str, position: int, logits: Callable[[Any, Sequence[int]], Tensor]) -> float:
    """What comes back where a module's input at one token is the clean run's."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].clone())

    def put(_: nn.Module, args: tuple[Any, ...]) -> Any:
        changed = args[0].clone()
        changed[:, position] = seen[0][:, position]
        return changed, *args[1:]

    found = []
    for tokens, hook in ((CLEAN, keep), (CORRUPT, put), (CORRUPT, None)):
        handle = network.get_submodule(path).register_forward_pre_hook(hook) if hook else None
        with torch.no_grad():
            answer = logits(network, tokens)
        found.append((answer[9] - answer[12]).item())
        if handle:
            handle.remove()
    return found[1] - found[2]


FORMS = [Own, GivesATensor, GivesATuple, GivesADict, TakesAnotherName, TakesNamesAlone]
LAYERS = [LayersGiveLists, LayersGiveNamedTuples, LayersGiveDicts, LayersGiveOutputs, LayersGiveDataclasses]


@pytest.mark.parametrize("kind", [*FORMS, *LAYERS])
def test_whatever_its_forward_takes_and_gives_its_layers_are_traced(kind: Any):
    network = made(kind)
    model = ct.load(network, tokenizer=WORDS)
    assert {"attn_out", "mlp_out", "resid_pre"} <= {*model.anatomy.components}
    trace = ct.trace(model, PAIR, components=["resid_pre"], neurons={1: []}, neuron_positions=[4], progress=False)
    for layer, position in ((1, 1), (2, 4)):
        said = trace.effects.restoration.sel(AT).sel(component="resid_pre", layer=layer).isel(position=position)
        expected = restored_by_hand(network, f"blocks.{layer}", position, own_logits)
        assert said.item() == pytest.approx(expected, abs=1e-5)


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


class PastItsWords(Own):
    """Reads the table of its words, and not by the module."""

    def logits(self, tokens: Tensor) -> Tensor:
        stream = nn.functional.embedding(tokens, self.words.weight)  # pyright: ignore[reportArgumentType]
        for block in self.blocks:
            stream = block(stream)
        return self.out(stream)


def test_noise_on_words_that_no_module_reads_is_refused():
    model = ct.load(made(PastItsWords), tokenizer=WORDS)
    noised = ct.Pair(clean=PAIR.clean, answer=" w9", foil=" w12", subject="w17")
    said = r"The module that reads tokens was called 0 times in one run, .*\. Give a corrupt prompt instead\."
    with pytest.raises(UnsupportedModel, match=said):
        ct.trace(model, noised, noise=ct.Noise(scale=3.0, draws=1), progress=False)


class WithoutGradients(Own):
    @torch.no_grad()
    def forward(self, input_ids: Tensor) -> Any:
        return super().forward(input_ids)


def test_a_forward_that_turns_gradients_off_has_no_estimates():
    model = ct.load(made(WithoutGradients), tokenizer=WORDS)
    with pytest.raises(UnsupportedModel, match=r"has no gradients: its forward turns them off, .*\. Use trace\(\)"):
        ct.attribute(model, PAIR, components=["mlp_out"], progress=False)


class OnesAmongZeros(Own):
    """Reads tokens as ones among zeros, by a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Linear(97, WIDTH)

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(nn.functional.one_hot(tokens, 97).float())
        for block in self.blocks:
            stream = block(stream)
        return self.out(stream)


def test_a_matrix_that_reads_tokens_knows_as_many_as_it_has_columns():
    network = made(OnesAmongZeros)
    model = ct.load(network, tokenizer=WORDS)
    assert model.vocabulary == 97
    trace = ct.trace(model, PAIR, components=["resid_pre"], progress=False)
    said = trace.effects.restoration.sel(AT).sel(component="resid_pre", layer=1).isel(position=4)
    assert said.item() == pytest.approx(restored_by_hand(network, "blocks.1", 4, own_logits), abs=1e-5)


def test_a_word_that_the_head_does_not_know_is_named():
    network = tiny_model("llama", num_hidden_layers=1)
    network.lm_head = nn.Linear(32, 60, bias=False)
    model = ct.load(network, tokenizer=WORDS)
    pair = ct.Pair(clean="w5 w17 w32", corrupt="w5 w23 w32", answer=" w9", foil=" w80")
    with pytest.raises(InvalidPair, match=r"asks for the token 'w80' \(id 80\), and .* gives logits of 60 words"):
        ct.trace(model, pair, progress=False)


# Of the library's, changed


class Adapted(nn.Module):
    """A matrix with two small ones beside it, as LoRA has them: no weight by that name."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        self.whole, self.down = whole, nn.Parameter(torch.randn(whole.in_features, 4) * 0.3)
        self.up = nn.Parameter(torch.randn(4, whole.out_features) * 0.3)

    def forward(self, value: Tensor) -> Tensor:
        return self.whole(value) + value @ self.down @ self.up


def llama_logits(network: Any, tokens: Sequence[int]) -> Tensor:
    return network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]


def test_heads_go_into_what_wraps_the_last_projection():
    network = tiny_model("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in network.model.layers:
            layer.self_attn.o_proj = Adapted(layer.self_attn.o_proj)
    trace = ct.trace(ct.load(network, tokenizer=WORDS), PAIR, components=(), heads=["z"], progress=False)
    found = trace.heads.restoration.sel(AT).sel(component="z", layer=2)
    seen: list[Tensor] = []
    path = "model.layers.2.self_attn.o_proj"
    assert found.notnull().all()
    handle = network.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        llama_logits(network, CLEAN)
        handle.remove()
        corrupt = llama_logits(network, CORRUPT)

    def put(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        changed = args[0].clone()
        changed[:, 4, 8:16] = seen[0][:, 4, 8:16]
        return (changed,)

    handle = network.get_submodule(path).register_forward_pre_hook(put)
    with torch.no_grad():
        patched = llama_logits(network, CORRUPT)
    handle.remove()
    moved = patched - corrupt
    assert found.sel(head=1).isel(position=4).item() == pytest.approx((moved[9] - moved[12]).item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called:UserWarning")
def test_where_no_pattern_can_be_made_the_rest_of_the_heads_is_traced():
    """Flex attention has masks of its own, which eager attention cannot read, and no gradients on a CPU."""
    network = tiny_model("llama", num_hidden_layers=2)
    network.set_attn_implementation("flex_attention")
    model = ct.load(network, tokenizer=WORDS)
    assert dict(model.anatomy.refused)["pattern"].endswith("a form that eager attention cannot read.")
    trace = ct.trace(model, PAIR, components=["mlp_out"], heads=["z", "v"], progress=False)
    plain = tiny_model("llama", num_hidden_layers=2)
    other = ct.trace(ct.load(plain, tokenizer=WORDS), PAIR, components=["mlp_out"], heads=["z", "v"], progress=False)
    both = [torch.tensor(one.heads.restoration.sel(AT).values) for one in (trace, other)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-4, equal_nan=True)
    with pytest.raises(UnsupportedModel, match=r"has no gradients here: FlexAttention .* Use trace\(\)"):
        ct.attribute(model, PAIR, components=["mlp_out"], progress=False)
