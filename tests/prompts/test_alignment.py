"""Prompts of different lengths, and chat prompts: which tokens are paired, and that these and no others are patched."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.errors import MisalignedPair, UnsupportedTokenizer
from causal_tracing.models.model import Model
from causal_tracing.prompts.alignment import aligned
from causal_tracing.prompts.pairs import tokenize
from causal_tracing.prompts.tokens import ROLES, TokenPrompt, roles_of
from families import FAMILIES, build
from tiny import tiny_model, tiny_tokenizer
from tokenizers_for_tests import words

LLAMA = next(family for family in FAMILIES if family.name == "llama")
WORDS = words(*(f" w{n}" for n in range(96)))
SHORT: dict[str, Any] = {"clean": " w1 w2 w11 w3 w4", "subject": "w11"}
LONG: dict[str, Any] = {"corrupt": " w1 w2 w21 w22 w3 w4", "corrupt_subject": "w21 w22"}
TEMPLATE = (
    "{% for message in messages %}<bos> system in the city<eos><bos> {{ message.role }}\n{{ message.content }}<eos>"
    "{% endfor %}{% if add_generation_prompt %}<bos> is{% endif %}"
)


def pair(**fields: Any) -> ct.Pair:
    texts: dict[str, Any] = {"answer": " w7", "foil": " w8"}
    return ct.Pair(**(SHORT | LONG | texts | fields))


def slots(align: str, **fields: Any) -> list[tuple[int, int]]:
    return [(slot.clean, slot.corrupt) for slot in tokenize(pair(**fields), WORDS, align=align).slots]


def test_a_suffix_is_what_both_prompts_end_in():
    assert slots("suffix") == [(3, 4), (4, 5)]
    assert slots("suffix", corrupt=" w9 w4", corrupt_subject=None) == [(4, 1)]
    assert slots("suffix", corrupt=SHORT["clean"], corrupt_subject="w11") == [(n, n) for n in range(5)]
    with pytest.raises(MisalignedPair, match="no right part that both prompts share"):
        slots("suffix", corrupt=" w1 w9", corrupt_subject=None)


def test_spans_pair_equal_roles_and_the_last_tokens_of_unequal_ones():
    assert slots("spans") == [(0, 0), (1, 1), (2, 3), (3, 4), (4, 5)]
    longer: dict[str, Any] = {"clean": " w1 w11 w12 w13 w14 w3 w5 w4", "subject": "w11 w12 w13 w14"}
    assert slots("spans", **longer) == [(0, 1), (1, 2), (4, 3), (5, 4), (7, 5)]
    with pytest.raises(MisalignedPair, match="the corrupt prompt has no subject"):
        slots("spans", corrupt_subject=None)


def test_what_is_skipped_or_moved_is_said():
    found = tokenize(pair(), WORDS, align="spans")
    assert found.remarks == (
        "tokens that are not paired, and so not patched: corrupt 2 ( w21)",
        "3 of 5 paired tokens stand at another position in the other prompt: an activation that is moved carries its "
        "old position with it",
    )
    assert tokenize(pair(corrupt=" w1 w2 w21 w3 w4", corrupt_subject="w21"), WORDS, align="spans").remarks == ()


def prompt(tokens: list[int], subject: tuple[int, ...]) -> TokenPrompt:
    return TokenPrompt(
        text="",
        tokens=tuple(tokens),
        strings=tuple(map(str, tokens)),
        special=tuple(token == 0 for token in tokens),
        roles=roles_of(len(tokens), subject),
        subject=subject,
        spans={},
    )


# A BOS (0) or two in front or not, content with a special token now and then, and where a subject begins and ends.
DRAWN = st.tuples(
    st.integers(0, 2), st.lists(st.integers(0, 3), min_size=2, max_size=9), st.floats(0, 1), st.floats(0, 1)
)


def drawn(parts: Any) -> TokenPrompt:
    specials, body, first, last = parts
    tokens = [0] * specials + body
    start = min(int(first * len(tokens)), len(tokens) - 1)
    return prompt(tokens, tuple(range(start, max(start + 1, int(last * len(tokens))))))


@given(DRAWN, DRAWN, st.sampled_from(["suffix", "spans"]))
@settings(deadline=None, max_examples=400)
def test_alignment_is_one_to_one_and_never_maps_special_tokens_to_content(one: Any, other: Any, align: str):
    clean, corrupt = drawn(one), drawn(other)
    try:
        found = aligned(align, clean, corrupt, "p")
    except MisalignedPair:
        assert clean.tokens[-1] != corrupt.tokens[-1]
        assert align == "suffix" or 0 in (clean.tokens[-1], corrupt.tokens[-1])
        return
    assert len({slot.clean for slot in found}) == len({slot.corrupt for slot in found}) == len(found)
    assert list(found) == sorted(found)
    assert [slot.corrupt for slot in found] == sorted(slot.corrupt for slot in found)
    for here, there in found:
        if 0 in (clean.tokens[here], corrupt.tokens[there]) or align == "suffix":
            assert clean.tokens[here] == corrupt.tokens[there]
        else:
            assert clean.roles[here] == corrupt.roles[there]
    assert set(ROLES) >= {role for role in clean.roles if role}


@pytest.fixture(scope="module")
def model() -> Model:
    return accept(build(LLAMA), WORDS, name="tiny", source={"kind": "folder"})


def logits(network: Any, text: str, hooks: Mapping[Any, Callable[..., Any]] | None = None) -> torch.Tensor:
    handles = [module.register_forward_hook(hook) for module, hook in (hooks or {}).items()]
    try:
        with torch.no_grad():
            return network(torch.tensor([WORDS(text)["input_ids"]])).logits[0, -1].double()
    finally:
        for handle in handles:
            handle.remove()


def contrast(found: torch.Tensor) -> float:
    return (found[WORDS(" w7")["input_ids"][0]] - found[WORDS(" w8")["input_ids"][0]]).item()


def patched(network: Any, module: Any, into: str, at: int, donor: str, there: int) -> float:
    """One bare patch: what `donor` has at `there` into `into` at `at`."""
    kept: list[torch.Tensor] = []
    logits(
        network, donor, {module: lambda _, __, output: kept.append(output[0] if isinstance(output, tuple) else output)}
    )

    def write(_: Any, __: Any, output: Any) -> Any:
        whole = isinstance(output, tuple)
        changed = (output[0] if whole else output).clone()
        changed[:, at] = kept[0][:, there]
        return (changed, *output[1:]) if whole else changed

    return contrast(logits(network, into, {module: write}))


@pytest.mark.parametrize("engine", ["packed", "replay"])
@pytest.mark.parametrize("align", ["spans", "suffix"])
def test_each_cell_is_a_bare_patch_between_the_paired_positions(model: Model, align: str, engine: str):
    trace = ct.trace(model, pair(), align=align, components=["resid_post", "mlp_out"], engine=engine, spot_checks=4)
    found = trace.effects.sel(metric="logit_diff", pair="pair-0")
    network = model.network
    clean, corrupt = SHORT["clean"], LONG["corrupt"]
    unedited = [contrast(logits(network, text)) for text in (clean, corrupt)]
    assert found.total_effect.item() == pytest.approx(unedited[0] - unedited[1], abs=1e-4)
    paired = dict(slots(align))
    for layer, block in enumerate(network.model.layers):
        for component, module in (("resid_post", block), ("mlp_out", block.mlp)):
            cell = found.sel(component=component, layer=layer)
            for here in range(5):
                if here not in paired:
                    assert cell.status.sel(position=here) == "unpaired"
                    assert np.isnan(cell.restoration.sel(position=here))
                    continue
                there = paired[here]
                restored = patched(network, module, corrupt, there, clean, here) - unedited[1]
                lost = unedited[0] - patched(network, module, clean, here, corrupt, there)
                assert cell.restoration.sel(position=here).item() == pytest.approx(restored, abs=1e-4)
                assert cell.disruption.sel(position=here).item() == pytest.approx(lost, abs=1e-4)
    assert trace.provenance["spot_checks"]["largest_difference"] < 1e-4


def test_the_last_token_of_the_last_layer_is_a_cut_wherever_it_stands(model: Model):
    found = ct.trace(model, pair(), align="spans").effects.sel(metric="logit_diff", pair="pair-0")
    last = found.sel(component="resid_post", layer=model.num_layers - 1, position=4)
    assert last.status == "cut"
    assert last.restoration.item() == pytest.approx(found.total_effect.item(), abs=1e-4)
    assert last.disruption.item() == pytest.approx(found.total_effect.item(), abs=1e-4)
    assert (found.sel(component="resid_post").status == "cut").sum() == 1


def test_the_words_the_tokens_and_the_preview_show_the_pairing(model: Model):
    trace = ct.trace(model, pair(), align="suffix")
    assert list(trace.effects.corrupt_token.values[0][:5]) == ["", "", "", " w3", " w4"]
    assert "3 of 5 clean tokens and 4 of 6 corrupt ones are paired with none" in trace.summary()
    assert "2 tokens stand at another position" in trace.summary()
    assert "paired  clean=corrupt 3=4 ( w3/ w3), 4=5 ( w4/ w4)" in str(ct.preview(model, pair(), align="suffix")[0])
    assert "--align suffix" in trace.provenance["command"]


def test_heads_and_roles_follow_the_pairing(model: Model):
    both: dict[str, Any] = {"heads": ["z"], "positions": ["subject_last"], "head_positions": ["subject_last"]}
    trace = ct.trace(model, pair(), align="spans", **both)
    assert (trace.heads.status == "ok").any()
    each = ct.trace(model, pair(), align="spans")
    one = {"metric": "logit_diff", "pair": "pair-0", "component": "mlp_out", "layer": 1}
    role = trace.effects.restoration.sel(one).sel(position="subject_last").item()
    assert role == pytest.approx(each.effects.restoration.sel(one).sel(position=2).item(), abs=1e-5)


def test_a_long_answer_is_scored_after_prompts_of_different_lengths(model: Model):
    long = pair(answer=" w7 w6", foil=" w8")
    found = ct.trace(model, long, align="spans").effects.sel(pair="pair-0", metric="log_prob")
    tokens = WORDS(" w7 w6")["input_ids"]

    def score(text: str) -> float:
        first = logits(model.network, text).log_softmax(-1)[tokens[0]]
        return (first + logits(model.network, text + " w7").log_softmax(-1)[tokens[1]]).item()

    expected = score(SHORT["clean"]) - score(LONG["corrupt"])
    assert found.total_effect.item() == pytest.approx(expected, abs=1e-4)
    assert found.status.sel(component="resid_post", layer=model.num_layers - 1, position=4) != "cut"


def chatting(*, bos: bool = False) -> Any:
    tokenizer = tiny_tokenizer(bos=bos)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


CHAT: dict[str, Any] = {
    "clean": "the city in Rome", "corrupt": "the city in Paris", "subject": "city", "answer": " Mary", "foil": " John",
    "chat": True,
}  # fmt: skip


def chat(**fields: Any) -> ct.Pair:
    return ct.Pair(**(CHAT | fields))


def test_a_chat_prompt_goes_through_the_template_and_its_subject_is_found_in_the_message():
    found = tokenize(chat(), chatting())
    assert found.clean.text == "<bos> system in the city<eos><bos> user\nthe city in Rome<eos><bos> is"
    (position,) = found.clean.subject
    assert found.clean.strings[position] == " city"
    assert found.clean.text.count("city", 0, found.clean.text.index("user")) == 1  # the template has it too
    assert "".join(found.clean.strings[:position]).count("city") == 1
    assert len(found.differing) == 1
    assert found.answer == chatting()(" Mary")["input_ids"][0]


def test_a_chat_prompt_has_one_bos():
    plain, with_bos = (tokenize(chat(), chatting(bos=bos)) for bos in (False, True))
    assert with_bos.clean.tokens == plain.clean.tokens
    assert chatting(bos=True)("the city")["input_ids"][0] == 1  # which it would add itself


def test_a_chat_needs_a_template_that_keeps_the_message():
    with pytest.raises(UnsupportedTokenizer, match="no chat template"):
        tokenize(chat(), tiny_tokenizer())
    shouting = chatting()
    shouting.chat_template = TEMPLATE.replace("message.content", "message.content | upper")
    with pytest.raises(UnsupportedTokenizer, match="changes the message 'the city in Rome'"):
        tokenize(chat(), shouting)


def test_a_template_that_strips_the_message_finds_its_spans():
    stripping = chatting()
    stripping.chat_template = TEMPLATE.replace("message.content", "message.content | trim")
    spaced = tokenize(chat(clean=" the city in Rome "), stripping)
    assert spaced.clean.text == tokenize(chat(), chatting()).clean.text
    assert spaced.clean.subject == tokenize(chat(), chatting()).clean.subject


def test_a_chat_pair_is_traced_and_shown_by_its_own_words():
    model = ct.load(tiny_model(), tokenizer=chatting())
    trace = ct.trace(model, chat())
    assert trace.summary().startswith("the city in Rome → Mary   against   the city in Paris → John")
    assert trace.provenance["pairs"][0]["chat"] is True
