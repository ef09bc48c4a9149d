"""Sites by name: what a text names, what comes after `each`, and what is none."""

from typing import Any

import pytest

import causal_tracing as ct
from causal_tracing.errors import ComponentNotOffered, InvalidOption, InvalidPair
from causal_tracing.patching.named_sites import named_site, sites_on
from causal_tracing.patching.options.site_texts import INTERACTIONS, SETS, interactions, sets
from causal_tracing.prompts.pairs import TokenPair, tokenize_pairs
from joint import PAIR, tiny


@pytest.fixture(scope="module")
def pair() -> TokenPair:
    return tokenize_pairs([PAIR], tiny().tokenizer)[0]


@pytest.mark.parametrize(
    ("text", "layers", "parts", "tokens", "each"),
    [
        ("z 23.4 @ last", (23, 23), (4, 4), "last", False),
        ("resid_post 0-9 @ subject", (0, 9), None, "subject", False),
        ("neurons 12.100-149 @ 3", (12, 12), (100, 149), 3, False),
        ("mlp_out 4 @ all", (4, 4), None, "all", False),
        ("each z 20-29 @ last", (20, 29), None, "last", True),
        ("each neurons 2-3.5-6 @ -1", (2, 3), (5, 6), -1, True),
        ("each mlp_out @ last", None, None, "last", True),
        ("z 1-1.3-3 @ my span", (1, 1), (3, 3), "my span", False),
    ],
)
def test_a_text_names_a_site(text: str, layers: Any, parts: Any, tokens: Any, each: bool) -> None:
    site = named_site(text)
    assert (site.layers, site.parts, site.tokens, site.each) == (layers, parts, tokens, each)
    assert named_site(str(site)) == site
    assert str(named_site(f"  {text.replace(' ', '   ', 1).replace('@ ', '@')} ")) == str(site)


def test_a_site_without_layers_is_each_of_them() -> None:
    assert str(named_site("each mlp_out @ last")) == "each mlp_out @ last"
    with pytest.raises(InvalidOption, match='"each z @ last" for all heads one by one'):
        named_site("mlp_out @ last")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("each z 2-3 @ last", [f"z {layer}.{head} @ last" for layer in (2, 3) for head in range(4)]),
        ("each k @ 2", [f"k {layer}.{head} @ 2" for layer in range(4) for head in range(2)]),  # of grouped queries
        ("each z 1-2.0-1 @ last", ["z 1.0 @ last", "z 1.1 @ last", "z 2.0 @ last", "z 2.1 @ last"]),
        ("each mlp_out @ subject", [f"mlp_out {layer} @ subject" for layer in range(4)]),
        ("each neurons 1.7-9 @ -2", ["neurons 1.7 @ -2", "neurons 1.8 @ -2", "neurons 1.9 @ -2"]),
        ("z 2-3.0-1 @ last", ["z 2-3.0-1 @ last"]),
    ],
)
def test_each_is_every_layer_and_part_by_itself(pair: TokenPair, text: str, expected: list[str]) -> None:
    found = sites_on(tiny(), [text], [pair], "sets=")
    assert [str(site) for site in found] == expected
    assert not any(site.each for site in found)


@pytest.mark.parametrize(
    ("tokens", "positions"),
    [
        ("last", [5]),
        ("subject", [1, 2]),
        ("subject_last", [2]),
        ("all", [0, 1, 2, 3, 4, 5]),
        ("0", [0]),
        ("-1", [5]),
        ("-6", [0]),
    ],
)
def test_tokens_are_those_of_the_pair(pair: TokenPair, tokens: str, positions: list[int]) -> None:
    assert [slot.clean for slot in named_site(f"z 1.2 @ {tokens}").slots(pair)] == positions


def test_all_are_those_that_are_paired() -> None:
    longer = ct.Pair(clean=" w11 w12 w16", corrupt=" w11 w30 w31 w16", answer=" w7", subject=" w12",
                     corrupt_subject=" w30 w31")  # fmt: skip
    pair = tokenize_pairs([longer], tiny().tokenizer, align="spans")[0]
    assert [tuple(slot) for slot in named_site("z 1.2 @ all").slots(pair)] == [tuple(slot) for slot in pair.slots]
    assert [slot.corrupt for slot in named_site("z 1.2 @ last").slots(pair)] == [3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("z 1.2 @ 6", "pair 'pair-0' has no paired token 6, which the set 'a' names"),
        ("z 1.2 @ 99", "has no paired token 99"),  # and is not wrapped round
        ("z 1.2 @ -7", "has no paired token -7"),
        ("z 1.2 @ nowhere", "has no paired token 'nowhere'"),
        ("z 1.4 @ last", r"There is no part 4: layer 1 of tiny \(z\) has parts 0 to 3"),
        ("z 1.2-4 @ last", "There is no part 4"),
        ("k 1.2 @ last", r"There is no part 2: layer 1 of tiny \(k\) has parts 0 to 1"),
        ("neurons 1.0-999999999 @ last", "There is no part 999999999"),  # before a list is made of them
        ("each neurons 1.0-999999999 @ last", "There is no part 999999999"),
        ("neurons 1.0-9999999999999 @ last", "no model has so many parts"),
        (f"z {5000 * '9'}.1 @ last", "no model has so many layers"),
        ("neurons 1.0-64 @ last", r"There is no part 64: layer 1 of tiny \(neurons\) has parts 0 to 63"),
        ("each z 1.2-4 @ last", "There is no part 4"),
        ("z 1.3-2 @ last", "'z 1.3-2 @ last': its parts run backwards. Write 2-3"),
        ("z 3-1.2 @ last", "its layers run backwards. Write 1-3"),
        ("mlp_out 3-4 @ last", "There is no layer 4: tiny has layers 0 to 3"),
        ("each mlp_out 3-4 @ last", "There is no layer 4"),
        ("mlp_out 1.2 @ last", "mlp_out has no heads, neurons or experts. Leave .2 out"),
        ("mlp 1 @ last", "there is no component 'mlp'. Did you mean 'mlp_out'"),
        ("z last", "is no site"),
        ("z 1. @ last", "is no site"),
        ("z 1.2 @", "is no site"),
        ("z 1.2 @ last; z 1.3 @ last", "is no site"),  # each is one, and ; stands between them on a command line
        ("mixer_out 1 @ last", "mixer_out is not offered on this model"),
    ],
)
def test_sites_that_are_none(text: str, message: str) -> None:
    asked: dict[str, Any]
    for asked in ({"sets": {"a": [text]}}, {"interactions": [[text], ["z 0.0 @ last"]]}, {"given": [text]}):
        said = message if "sets" in asked else message.replace("the set 'a'", f"{next(iter(asked))}=")
        with pytest.raises((InvalidOption, InvalidPair, ComponentNotOffered), match=said):
            ct.trace(tiny(), PAIR, **asked, progress=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = z 1.2 @ last", {"a": ["z 1.2 @ last"]}),
        ("a=z 1.2 @ last;mlp_out 0-1 @ 3;", {"a": ["z 1.2 @ last", "mlp_out 0-1 @ 3"]}),
        ("a b = z 1.2 @ last | c = each z @ 2", {"a b": ["z 1.2 @ last"], "c": ["each z @ 2"]}),
        ("a =", {"a": []}),
    ],
)
def test_sets_are_spelled(text: str, expected: dict[str, list[str]]) -> None:
    assert sets(text) == expected
    assert sets(SETS.write("sets", expected)["sets"]) == expected


def test_lists_are_spelled() -> None:
    one, two = ["z 1.2 @ last", "each z 2 @ last"], [["z 1.2 @ last"], ["each z @ 2", "mlp_out 1 @ 3"]]
    assert interactions("true") is True
    assert interactions("z 1.2 @ last; each z 2 @ last") == one
    assert interactions("z 1.2 @ last | each z @ 2; mlp_out 1 @ 3") == two
    for lists in (True, one, two):
        assert interactions(INTERACTIONS.write("interactions", lists)["interactions"]) == lists
