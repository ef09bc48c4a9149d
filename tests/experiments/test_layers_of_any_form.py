"""Layers that are no members of one list: found by what they do, traced exactly, and named as they are."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import causal_tracing as ct
from causal_tracing.errors import UnsupportedModel
from loaded import WORDS
from own_networks import AT, CLEAN, CORRUPT, PAIR, WIDTH, Layer, Own, made, own_logits, restored_by_hand
from tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")


class InAny(Own):
    """The layers as `held` makes them of four, called one after another as `order` gives them."""

    def __init__(self) -> None:
        super().__init__()
        del self.blocks
        layers = [Layer(lambda stream: stream) for _ in range(4)]
        self.hold(layers)
        for layer in layers:
            for weight in layer.parameters():
                nn.init.normal_(weight, std=0.25)

    def hold(self, layers: list[Layer]) -> None:
        raise NotImplementedError

    def order(self) -> Any:
        raise NotImplementedError

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.order():
            stream = block(stream)
        return self.out(stream)


class InADict(InAny):
    def hold(self, layers: list[Layer]) -> None:
        self.stack = nn.ModuleDict({f"block_{number}": layer for number, layer in enumerate(layers)})

    def order(self) -> Any:
        return self.stack.values()


class InADictOfAll(InAny):
    """With what stands before and behind them, and not in the order in which they run."""

    def hold(self, layers: list[Layer]) -> None:
        first = {"drop": nn.Dropout(), "last": layers[3], "norm": nn.LayerNorm(WIDTH)}
        self.all = nn.ModuleDict(first | {f"b{number}": layer for number, layer in enumerate(layers[:3])})

    def order(self) -> Any:
        return [self.all[name] for name in ("drop", "b0", "b1", "b2", "last", "norm")]


class AsAttributes(InAny):
    def hold(self, layers: list[Layer]) -> None:
        self.h0, self.h1, self.h2, self.h3 = layers
        self.ln_f = nn.LayerNorm(WIDTH)

    def order(self) -> Any:
        return self.h0, self.h1, self.h2, self.h3, self.ln_f


class ListsInAList(InAny):
    def hold(self, layers: list[Layer]) -> None:
        self.groups = nn.ModuleList([nn.ModuleList(layers[:1]), nn.ModuleList(layers[1:])])

    def order(self) -> Any:
        return [layer for group in self.groups for layer in group]  # pyright: ignore[reportGeneralTypeIssues]


class InStages(InAny):
    def hold(self, layers: list[Layer]) -> None:
        self.stages = nn.Sequential(nn.Sequential(*layers[:3]), nn.Sequential(layers[3]))

    def order(self) -> Any:
        return [self.stages]


class Stage(nn.Module):
    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.inner = nn.Sequential(OrderedDict({f"l{number}": layer for number, layer in enumerate(layers)}))

    def forward(self, stream: Tensor) -> Tensor:
        return self.inner(stream)


class InStagesOfTheirOwn(InAny):
    def hold(self, layers: list[Layer]) -> None:
        self.stages = nn.ModuleList([Stage(layers[:2]), Stage(layers[2:])])

    def order(self) -> Any:
        return self.stages


class AllInOneList(InAny):
    """With dropout, norm and head."""

    def hold(self, layers: list[Layer]) -> None:
        del self.out
        head = nn.Linear(WIDTH, 97)
        nn.init.normal_(head.weight, std=0.25)
        self.all = nn.Sequential(nn.Dropout(), *layers, nn.LayerNorm(WIDTH), head)
        self.out = nn.Identity()

    def order(self) -> Any:
        return [self.all]


class RowsInARow(InAny):
    """A stream without an axis of rows."""

    def hold(self, layers: list[Layer]) -> None:
        self.blocks = nn.ModuleList([Flattened(layer) for layer in layers])

    def logits(self, tokens: Tensor) -> Tensor:
        stream = (self.words(tokens) + self.places(torch.arange(tokens.shape[1]))).flatten(0, 1)
        for block in self.blocks:
            stream = block(stream, len(tokens))
        return self.out(stream).unflatten(0, tokens.shape)


class Flattened(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.norms, self.joined, self.attn, self.mlp = layer.norms, layer.joined, layer.attn, layer.mlp

    def forward(self, stream: Tensor, rows: int) -> Tensor:
        joined = self.joined(self.norms[0](stream)).unflatten(0, (rows, -1)).unflatten(-1, (3, 4, -1))
        q, k, v = joined.permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        stream = stream + self.attn(heads.reshape(stream.shape))
        return stream + self.mlp(self.norms[1](stream))


class Halves(nn.Module):
    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.first, self.second = layers

    def forward(self, stream: Tensor) -> Tensor:
        return self.second(self.first(stream))


class AttributesOfAttributes(InAny):
    def hold(self, layers: list[Layer]) -> None:
        self.low, self.high = Halves(layers[:2]), Halves(layers[2:])

    def order(self) -> Any:
        return self.low, self.high


FORMS = [
    (AttributesOfAttributes, "low, high", ("low.first", "low.second", "high.first", "high.second")),
    (AllInOneList, "all.1, all.2, all.3, all.4", ("all.1", "all.2", "all.3", "all.4")),
    (RowsInARow, "blocks", "blocks.{}"),
    (InADict, "stack", "stack.block_{}"),
    (InADictOfAll, "all.b0, all.b1, all.b2, all.last", ("all.b0", "all.b1", "all.b2", "all.last")),
    (AsAttributes, "h0, h1, h2, h3", "h{}"),
    (ListsInAList, "groups", ("groups.0.0", "groups.1.0", "groups.1.1", "groups.1.2")),
    (InStages, "stages", ("stages.0.0", "stages.0.1", "stages.0.2", "stages.1.0")),
    (
        InStagesOfTheirOwn,
        "stages",
        ("stages.0.inner.l0", "stages.0.inner.l1", "stages.1.inner.l0", "stages.1.inner.l1"),
    ),
]


@pytest.mark.parametrize(("kind", "called", "paths"), FORMS)
def test_layers_are_found_wherever_they_are_held(kind: Any, called: str, paths: Any):
    network = made(kind)
    where = [paths.format(n) for n in range(4)] if isinstance(paths, str) else paths
    model = ct.load(network, tokenizer=WORDS)
    assert (model.num_layers, model.anatomy.layers) == (4, called)
    assert [*model.layers] == [network.get_submodule(path) for path in where]
    assert {"attn_out", "mlp_out", "resid_mid"} <= {*model.anatomy.components}
    trace = ct.trace(model, PAIR, components=["resid_pre", "resid_post"], progress=False)
    found = trace.effects.restoration.sel(AT)
    for layer, position in ((1, 1), (2, 4), (3, 6)):
        expected = restored_by_hand(network, where[layer], position, own_logits, flat=kind is RowsInARow)
        assert found.sel(component="resid_pre", layer=layer).isel(position=position).item() == pytest.approx(
            expected, abs=1e-5
        )
    assert f"at {called}" in str(ct.check(model))


class OneAttribute(InAny):
    """A single layer, beside the head."""

    def hold(self, layers: list[Layer]) -> None:
        self.only = layers[0]

    def order(self) -> Any:
        return [self.only]


def test_a_single_layer_needs_no_list():
    model = ct.load(made(OneAttribute), tokenizer=WORDS)
    assert (model.anatomy.layers, [*model.layers]) == ("only", [model.network.only])
    assert {"attn_out", "mlp_out", "resid_mid"} <= {*model.anatomy.components}


def test_a_layer_that_is_gone_since_is_said():
    network: Any = made(InADict)
    model = ct.load(network, tokenizer=WORDS)
    del network.stack["block_3"]
    with pytest.raises(UnsupportedModel, match=r"had 4 layers when it was loaded, and has 3 now: load it again"):
        ct.trace(model, PAIR, progress=False)


class PlacesInAList(Own):
    """Five tokens at most, whose places pass a list of their own, once for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.config.max_position_embeddings = 5
        self.ways = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens) + self.ways(self.places(torch.arange(tokens.shape[1]))[None])
        for block in self.blocks:
            stream = block(stream)
        return self.out(stream)


def test_what_is_made_of_places_alone_is_no_layer():
    assert ct.load(made(PlacesInAList), tokenizer=WORDS).anatomy.layers == "blocks"


class PairsOfParts(InAny):
    """Layers of two modules, each with its residual: no layer is one of them alone."""

    def hold(self, layers: list[Layer]) -> None:
        self.stages = nn.Sequential(*(nn.Sequential(Half(layer, 0), Half(layer, 1)) for layer in layers))

    def order(self) -> Any:
        return [self.stages]


class Half(nn.Module):
    def __init__(self, layer: Layer, which: int) -> None:
        super().__init__()
        self.norm, self.which = layer.norms[which], which
        self.joined, self.attn, self.mlp = (layer.joined, layer.attn, None) if which == 0 else (None, None, layer.mlp)

    def forward(self, stream: Tensor) -> Tensor:
        if self.mlp is not None:
            return stream + self.mlp(self.norm(stream))
        assert self.joined is not None
        assert self.attn is not None
        q, k, v = self.joined(self.norm(stream)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return stream + self.attn(heads.transpose(1, 2).flatten(2))


def test_attention_and_mlp_with_residuals_of_their_own_are_one_layer():
    model = ct.load(made(PairsOfParts), tokenizer=WORDS)
    assert (model.num_layers, model.anatomy.paths) == (4, ())
    assert {"attn_out", "mlp_out", "resid_mid"} <= {*model.anatomy.components}


class Turned(Own):
    """torch's own layers, as they are made: tokens before rows."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, norm_first=True) for _ in range(3)]
        )
        with torch.no_grad():
            for weight in self.blocks.parameters():
                nn.init.normal_(weight, std=0.25)

    def logits(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        stream = (self.words(tokens) + self.places(torch.arange(length))).transpose(0, 1)
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        for block in self.blocks:
            stream = block(stream, src_mask=mask)
        return self.out(stream).transpose(0, 1)


def test_a_stream_of_tokens_before_rows_is_traced():
    network: Any = made(Turned)
    model = ct.load(network, tokenizer=WORDS)
    assert {"attn_out", "mlp_out", "resid_mid"} <= {*model.anatomy.components}
    trace = ct.trace(model, PAIR, components=["attn_out", "resid_pre"], progress=False)
    found = trace.effects.restoration.sel(AT)
    for layer, position in ((1, 1), (2, 4)):
        expected = restored_in_the_middle(network, layer, position)
        assert found.sel(component="attn_out", layer=layer).isel(position=position).item() == pytest.approx(
            expected, abs=1e-5
        )


def restored_in_the_middle(network: Any, layer: int, position: int) -> float:
    """What comes back where attention adds what it adds in the clean run, at one token."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output[0].clone())

    def put(_: nn.Module, __: Any, output: Any) -> Any:
        changed = output[0].clone()
        changed[position] = seen[0][position]
        return changed, *output[1:]

    found = []
    for tokens, hook in ((CLEAN, keep), (CORRUPT, put), (CORRUPT, lambda *_: None)):
        handle = network.blocks[layer].self_attn.register_forward_hook(hook)
        with torch.no_grad():
            answer = own_logits(network, tokens)
        handle.remove()
        found.append((answer[9] - answer[12]).item())
    return found[1] - found[2]


class LlamaInADict(Own):
    """The library's layers in a table of one's own."""

    def __init__(self) -> None:
        super().__init__()
        del self.blocks
        self.inner: Any = tiny_model("llama")
        self.config = self.inner.config
        self.table = nn.ModuleDict({f"n{n}": layer for n, layer in enumerate(self.inner.model.layers)})
        self.inner.model.layers = nn.ModuleList()

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.model.embed_tokens

    def logits(self, tokens: Tensor) -> Tensor:
        model = self.inner.model
        stream, places = model.embed_tokens(tokens), torch.arange(tokens.shape[1])[None]
        rotary = model.rotary_emb(stream, places)
        for layer in self.table.values():
            stream = layer(stream, position_embeddings=rotary, position_ids=places)
        return self.inner.lm_head(model.norm(stream))


@pytest.mark.filterwarnings("error::causal_tracing.errors.EngineNote")
def test_layers_in_a_table_are_packed_as_in_a_list():
    model = ct.load(made(LlamaInADict), tokenizer=WORDS)
    plain = ct.load(tiny_model("llama"), tokenizer=WORDS)
    found, expected = (
        ct.trace(each, PAIR, components=["resid_pre", "attn_out", "mlp_out"], heads=["z"], progress=False)
        for each in (model, plain)
    )
    assert found.provenance["engine"] == "packed"
    for name in ("effects", "heads"):
        both = [torch.tensor(getattr(one, name).restoration.sel(AT).values) for one in (found, expected)]
        torch.testing.assert_close(*both, rtol=0, atol=1e-5, equal_nan=True)
