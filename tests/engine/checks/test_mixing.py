"""Rules by which effects are known without a run are tried on the model first; where they do not hold, all is run."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from causal_tracing.engine.checks.check import accept, prove
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.errors import EngineNote
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from families import build
from loaded import BY_NAME, WORDS, fresh, shared
from model_types.recipes import build as build_type

CLEAN, CORRUPT = (5, 17, 32, 11, 40, 33, 8), (5, 23, 32, 11, 45, 33, 8)  # differ at 1 and 4


def of(name: str) -> Model:
    return accept(build_type(name), WORDS, name=name)


def values(model: Model, sites: list[Site], *, prune: bool) -> np.ndarray:
    worlds = [World(Run(CORRUPT), (Edit(site, From(Run(CLEAN), site.position)),), (6,)) for site in sites]
    return evaluate(model, worlds, lambda logits, _: logits.flatten(1), prune=prune).values


def every_site(model: Model, components: tuple[str, ...], layers: tuple[int, ...]) -> list[Site]:
    return [Site(*each) for each in product(components, layers, range(7))]


def shifts_tokens(model: Model) -> None:
    """An embedding that adds to each token the one before: what layer 0 reads no longer follows from a token alone."""

    def hook(_, __, output: Tensor) -> Tensor:
        return output + torch.nn.functional.pad(output[:, :-1], (0, 0, 1, 0))

    model.network.get_input_embeddings().register_forward_hook(hook)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "bloom"])
def test_in_a_plain_decoder_only_attention_mixes(name):
    model, _ = prove(shared(name), shared(name).anatomy.mediators)
    offered = {*model.anatomy.components, *model.anatomy.mediators}
    assert offered & {*model.anatomy.mixing} == offered & {"resid_pre", "k", "v"}
    assert {*model.anatomy.tokenwise} == offered & {"resid_pre", "q", "k", "v"}


@pytest.mark.parametrize("name", ["rwkv", "inkling_text"])
def test_where_the_mlps_side_mixes_nothing_before_it_is_inside_its_token(name):
    """A time shift, a short convolution: what attention wrote at a token is read by the MLP of the next."""
    model = of(name)
    assert {"attn_out", "resid_mid"} <= {*model.anatomy.mixing}
    last = model.num_layers - 1
    sites = every_site(model, ("attn_out", "resid_mid"), (last,))
    pruned, whole = (values(model, sites, prune=prune) for prune in (True, False))
    np.testing.assert_allclose(pruned, whole, rtol=0, atol=1e-5)
    unedited = evaluate(model, [World(Run(CORRUPT), (), (6,))], lambda logits, _: logits.flatten(1)).values
    inner = [number for number, site in enumerate(sites) if site.position == 5]
    assert np.abs(whole[inner] - unedited).max() > 1e-4  # a rule that is only assumed would call this zero


def test_behind_the_last_layer_nothing_is_assumed_either():
    """A decoder of bytes behind the layers reads all of them: what is written in the last one matters everywhere."""
    with pytest.warns(EngineNote, match="has layers in several lists"):
        model = of("blt")
    assert {*model.anatomy.components} <= {*model.anatomy.mixing}
    sites = every_site(model, ("resid_post", "mlp_out"), (model.num_layers - 1,))
    pruned, whole = (values(model, sites, prune=prune) for prune in (True, False))
    np.testing.assert_allclose(pruned, whole, rtol=0, atol=1e-5)
    unedited = evaluate(model, [World(Run(CORRUPT), (), (6,))], lambda logits, _: logits.flatten(1)).values
    assert np.abs(whole[[2, 3, 4]] - unedited).max() > 1e-3


def test_an_embedding_that_mixes_tokens_leaves_nothing_tokenwise():
    network = build(BY_NAME["llama"])
    plain = accept(network, WORDS, name="llama")
    assert plain.anatomy.tokenwise == ("resid_pre",)
    shifts_tokens(plain)
    model, _ = prove(accept(network, WORDS, name="llama"), ["q", "k", "v"])
    assert model.anatomy.tokenwise == ()
    sites = every_site(model, ("resid_pre", "v"), (0,))
    pruned, whole = (values(model, sites, prune=prune) for prune in (True, False))
    np.testing.assert_allclose(pruned, whole, rtol=0, atol=1e-5)


def test_what_was_not_tried_is_neither_inside_its_token_nor_tokenwise():
    anatomy = fresh("llama").anatomy
    assert {"q", "k", "v", "pattern", "z", "neurons"} <= {*anatomy.mixing}
    assert {*anatomy.tokenwise} <= {"resid_pre"}


def test_a_small_share_of_another_token_is_mixing_too():
    """A few hundred times what rounding makes within one forward: bounds that were wider would call it inside."""
    model = fresh("llama")

    def hook(_, __, output: Tensor) -> Tensor:
        return output + 1e-3 * torch.nn.functional.pad(output[:, :-1], (0, 0, 1, 0))

    model.part(2, "mlp.down_proj").register_forward_hook(hook)  # hooks go before what is found: the check sees both
    again = accept(model.network, WORDS, name="llama")
    assert "mlp_out" not in again.anatomy.mixing  # the hook belongs to the module: its output is whole, and inside
    assert {"resid_mid", "attn_out"} <= {*again.anatomy.mixing}  # what it reads goes on to the next token
