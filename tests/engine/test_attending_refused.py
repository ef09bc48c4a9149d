"""How attention cannot be told: a clear error for each, whether it is seen in the edit, the run or the model."""

from typing import Any

import numpy as np
import pytest
import torch

from attending import BASE, DONOR, ENGINES, LAST, LONGER, WINDOWS, asked_by, logits, told
from causal_tracing.errors import ComponentNotOffered, InvalidEdit
from causal_tracing.interventions.edits import Attending, Edit, From, Given, Run, World
from causal_tracing.interventions.sites import ATTENTION, Site
from loaded import BY_NAME, shared


def test_a_key_that_is_named_twice_is_refused():
    donors = ((2, From(DONOR, 2)), (2, From(DONOR, 3)))
    hows: list[dict[str, Any]] = [{part: donors} for part in ("q", "k", "v")]
    for how in hows:
        with pytest.raises(InvalidEdit, match="attention of layer 1 at position 8 names a key twice"):
            Run(BASE.tokens, (told(1, LAST, **how),))


@pytest.mark.parametrize(
    ("site", "how", "message"),
    [
        (Site(ATTENTION, 1, 4), {"blocked": (0, 1, 2, 3, 4)}, r"attention of layer 1 at position 4: every key"),
        (
            Site(ATTENTION, 1, 2, 3),
            {"blocked": (4, 2, 1, 0)},
            r"attention \(head 3\) of layer 1 at position 2: every key",
        ),
        (Site(ATTENTION, 1, 0), {"blocked": (0,)}, "Leave it one, or use zeroed="),
        (Site(ATTENTION, 1, 4), {"blocked": (9,)}, "attention of layer 1 at position 4 names the key 9, .* 0 to 8"),
        (Site(ATTENTION, 1, 4), {"zeroed": (-1,)}, "names the key -1, but the run has 9 tokens"),
        (Site(ATTENTION, 1, 4), {"q": asked_by(4, (9,))}, "names the key 9"),
        (Site(ATTENTION, 1, 4), {"k": ((10, From(LONGER, 10)),)}, "names the key 10"),
        (Site(ATTENTION, 1, 4), {"v": ((3, From(DONOR, 9)),)}, "A donor is read at position 9, .* 9 tokens"),
        (Site(ATTENTION, 1, 9), {"blocked": (3,)}, "An edit is at position 9"),
        (Site("z", 1, 4), {"blocked": (3,)}, "How a query attends is told at attention, and not at z of layer 1"),
        (Site("resid_pre", 1, 4), {}, "told at attention, and not at resid_pre of layer 1 at position 4"),
    ],
)
def test_what_cannot_be_told_is_said(site, how, message):
    with pytest.raises(InvalidEdit, match=message):
        World(BASE, (Edit(site, Attending(**how)),), (LAST,))
    with pytest.raises(InvalidEdit, match=message):
        Run(BASE.tokens, (Edit(site, Attending(**how)),))


@pytest.mark.parametrize(
    "edit",
    [
        Edit(Site(ATTENTION, 1, 4), From(DONOR, 4)),
        Edit(Site(ATTENTION, 1, 4), Given(torch.zeros(32))),
        Edit(Site(ATTENTION, 1, 4), Attending(blocked=(3,)), 0.5),
        Edit(Site(ATTENTION, 1, 4), Attending(blocked=(3,)), 0.0),
    ],
)
def test_attention_is_no_activation(edit):
    with pytest.raises(InvalidEdit, match="attention of layer 1 at position 4 is no activation: only a whole"):
        Run(BASE.tokens, (edit,))


@pytest.mark.parametrize(("one", "other"), [(None, None), (2, 2), (None, 2), (2, None)])
def test_a_head_is_told_once(one, other):
    edits = (told(1, 4, one, blocked=(2,)), told(1, 4, other, zeroed=(3,)))
    with pytest.raises(InvalidEdit, match=r"Two edits of one run write at the same site: attention .*of layer 1"):
        World(BASE, edits, (LAST,))
    with pytest.raises(InvalidEdit, match=r"Two edits of one run write at the same site: attention .*of layer 1"):
        World(Run(BASE.tokens, edits[:1]), edits[1:], (LAST,))


def test_heads_queries_and_layers_are_told_apart():
    edits = (told(1, 4, 0), told(1, 4, 1), told(1, 5, 0), told(2, 4, 0))
    assert len(World(BASE, edits, (LAST,)).run.edits) == len(edits)


# That nothing is left in a window shows only where the mask is known.
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("head", [None, 1])
@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_in_which_no_key_is_left_is_refused(name, engine, head):
    model, layer = shared(name), WINDOWS[name][0]
    good, bad = (told(layer, LAST, head, blocked=keys) for keys in ((5, 6, 7), (5, 6, 7, 8)))
    assert np.isfinite(logits(model, engine, (good,))).all()
    part = "" if head is None else r" \(head 1\)"
    with pytest.raises(InvalidEdit, match=f"attention{part} of layer {layer} at position 8: every key .* is blocked"):
        logits(model, engine, (told(layer, 6, blocked=(3,)),), (bad,))


HYBRIDS = {"qwen3_next": (0, 2)}  # layers without heads, among others that have some


@pytest.mark.parametrize("name", [name for name, each in BY_NAME.items() if not each.packed and name not in HYBRIDS])
def test_where_it_is_not_offered_that_is_said(name):
    with pytest.raises(ComponentNotOffered, match="attention is not offered on this model .*replaceable attention"):
        logits(shared(name), "replay", (told(1, 4, blocked=(3,)),))


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, some in HYBRIDS.items() for layer in some])
def test_of_a_hybrid_the_layers_that_attend_are_named(name, layer):
    with pytest.raises(ComponentNotOffered, match=f"attention is not there in layer {layer} .*that have: 1, 3"):
        logits(shared(name), "replay", (told(layer, 4, blocked=(3,)),))


@pytest.mark.parametrize("engine", ENGINES)
def test_there_is_no_such_layer(engine):
    with pytest.raises(InvalidEdit, match="An edit is at attention of layer 4 at position 5, but llama has 4 layers"):
        logits(shared("llama"), engine, (told(4, 5, blocked=(3,)),))
