"""Estimates of paths: edge attribution and exact reception, against bare modules, autograd and the exact paths."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, nn

import causal_tracing as ct
from causal_tracing.engine.checks.check import accept
from causal_tracing.engine.choose import open_backend
from causal_tracing.errors import ComponentNotOffered, InvalidOption, InvalidPair
from causal_tracing.interventions.write import Write
from causal_tracing.models.model import Model
from causal_tracing.patching.kinds.senders import path_grids
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.pairs import tokenize_pairs
from causal_tracing.results.estimates import Checked
from causal_tracing.testing import lookup
from families import FAMILIES, build
from loaded import BY_NAME, shared
from readers_by_hand import (
    ANSWER,
    AT,
    CLEAN,
    CORRUPT,
    FOIL,
    HEADS,
    KEYS,
    LAST,
    LAYER,
    LAYERS,
    WORDS,
    exact_model,
    linear_by_hand,
    received_by_hand,
)

PAIR = ct.Pair(clean=CLEAN, corrupt=CORRUPT, answer=ANSWER, foil=FOIL)
EVERY_READER = ["each q", "each k", "each v", "each mlp_out", "logits"]
SENDERS = ["z 0.1 @ last", "z 1.0 @ 3", "attn_out 1 @ all", "mlp_out 0 @ 2", "resid_pre 0 @ 2"]
METHODS = ("eap", "eap-ig", "reception")
NORMED = ("gemma2", "gemma3_text", "gemma3", "olmo2")  # a norm between heads and stream: what is put in is not added
BETWEEN = ("opt-350m",)  # norms between the sums: what is added goes through them
NOT_HELD = ("falcon_h1",)  # a state space adds to the stream beside attention
READ = [
    family.name for family in FAMILIES
    if family.name not in (*NOT_HELD, *BETWEEN) and "mixer_out" not in BY_NAME[family.name].parts
]  # fmt: skip


def estimated(model: Model, method: str, senders: Any = SENDERS, receivers: Any = EVERY_READER, **options: Any) -> Any:
    few = {"verify": 1, "sample": 1, "spot_checks": 0, "progress": False}
    return ct.attribute(model, PAIR, method=method, senders=senders, receivers=receivers, **(few | options))


def table(found: Any) -> Any:
    return found.estimates["path"].sel(pair="pair-0")


def followed(model: Model, senders: Any = SENDERS, receivers: Any = EVERY_READER, **options: Any) -> Any:
    options = {"directions": ["restoration"], "progress": False, "spot_checks": 0} | options
    found = ct.paths(model, PAIR, senders=senders, receivers=receivers, **options)
    return found.of("paths").sel(metric="logit_diff", pair="pair-0", component="path")


# Laws


@pytest.mark.parametrize("name", READ)
def test_all_outgoing_edges_add_up_to_the_senders_own_estimate(name: str):
    model = shared(name)
    offered = model.anatomy.mediators
    if not {"q", "k", "v"} <= {*offered}:
        pytest.skip("its queries, keys and values cannot be read")
    if len(model.having("q")) < model.num_layers:
        pytest.skip("mixers that do not attend read too, and are no receivers")
    senders = SENDERS if "z" in offered and name not in NORMED else SENDERS[2:]
    engine = "packed" if BY_NAME[name].packed else "replay"
    for direction in ("restoration", "disruption"):
        found = table(estimated(model, "eap", senders, direction=direction, engine=engine))
        node = found.sel(receiver="every path")
        assert_allclose(
            found.drop_sel(receiver="every path").sum("receiver"), node, atol=2e-5 * max(1, abs(node).max())
        )
        assert float(abs(node).max()) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "granite"])
def test_halving_what_is_written_quarters_the_error(name: str):
    model = exact_model(name)
    linear = table(estimated(model, "eap")).drop_sel(receiver="every path")
    errors = []
    for alpha in (0.04, 0.02):  # a smaller one meets the norms' rounding, which are in float32
        exact = followed(model, write=Write(alpha=alpha)).restoration.drop_sel(receiver="every path")
        errors.append(float(abs(exact - alpha * linear).max()))
    size = float(abs(linear).max())
    assert size > 1e-2
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.15)


def test_reception_is_exact_where_all_behind_the_reader_is_affine():
    network = build(next(one for one in FAMILIES if one.name == "llama"), dtype=torch.float64)
    layer = network.model.layers[LAYERS - 1]
    layer.mlp.act_fn = nn.Identity()
    network.model.norm = _Affine(network.model.norm.weight)
    model = accept(network, WORDS, name="no norm behind the layers")
    readers = [f"mlp_out {LAYERS - 1}", "logits"]
    senders = ["z 1.0 @ last", "attn_out 2 @ last", "resid_pre 0 @ 2"]
    exact, found = followed(model, senders, readers).restoration, table(estimated(model, "reception", senders, readers))
    assert float(abs(exact.sel(receiver=readers[0])).max()) > 1e-3
    assert_allclose(found.sel(receiver=readers), exact.sel(receiver=readers), atol=2e-6)
    linear = table(estimated(model, "eap", senders, readers))
    assert float(abs(linear - exact).sel(receiver=readers[0]).max()) > 1e-3, "the norm before it is not affine"


class _Affine(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * hidden_states


@pytest.mark.parametrize("method", METHODS)
def test_where_both_prompts_are_the_same_nothing_is_estimated(method: str):
    found = table(estimated(shared("llama"), method, ["attn_out 1 @ 0", "z 0.1 @ 1", "mlp_out 2 @ 0"]))
    assert float(abs(found).max()) < 2e-6
    assert (found.drop_sel(receiver="every path") == 0).all()


def test_of_the_look_up_program_reception_finds_the_paths():
    program, asked = lookup()
    common: dict[str, Any] = {"engine": "replay", "progress": False, "metric": "logit_diff"}
    common |= {"senders": ["each attn_out @ all", "resid_pre 0 @ all"], "receivers": ["each mlp_out", "logits"]}
    found = ct.attribute(program, asked, method="reception", **common).estimates["path"].isel(pair=0)
    exact = ct.paths(program, asked, directions=["restoration"], **common).of("paths").restoration
    exact = exact.sel(metric="logit_diff", component="path").isel(pair=0).drop_sel(receiver="every path")
    assert_allclose(found.sel(receiver=exact.receiver), exact, atol=1e-5)
    assert float(abs(exact).max()) > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_the_engines_agree(method: str):
    packed, replay = (table(estimated(shared("llama"), method, engine=engine)) for engine in ("packed", "replay"))
    assert_allclose(packed, replay, atol=2e-5)
    assert float(abs(packed).max()) > 1e-2


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "gpt_neox"])
def test_what_is_no_path_is_the_same_zero_as_when_it_is_patched(name: str):
    exact = followed(shared(name), receivers=["each q", "each v", "each mlp_out", "logits"])
    found = estimated(shared(name), "reception", receivers=["each q", "each v", "each mlp_out", "logits"])
    map_ = found.measurements.maps["paths"].isel(pair=0, component=0)
    one, other = ((each.drop_sel(receiver="every path")) for each in (map_.structural_zero, exact.status))
    assert (one.values == (other == "structural_zero").values).all()
    assert 0 < one.values.sum() < one.size


@pytest.mark.parametrize(("method", "oracle"), [("reception", received_by_hand), ("eap", linear_by_hand)])
def test_every_reader_of_a_layer_is_as_bare_modules_give_it(method: str, oracle: Any):
    senders = [f"attn_out {LAYER - 1} @ {AT - 1}"]
    found = table(estimated(exact_model("llama"), method, senders)).isel(sender=0)
    expected = oracle()
    for name, values in expected.items():
        readers = [name + f" {LAYER}" + (f".{head}" if name != "mlp_out" else "") for head in range(len(values))]
        assert_allclose(found.sel(receiver=readers), values.detach(), atol=2e-6)
        assert float(values.detach().abs().max()) > 1e-4


@pytest.mark.parametrize("steps", [1, 4])
def test_the_way_begins_at_the_base_run_and_leaves_the_donor_out(steps: int):
    model = exact_model("llama")
    network, embed = model.network, model.network.get_input_embeddings()
    clean, corrupt = (embed(torch.tensor([WORDS(text)["input_ids"]])).detach() for text in (CLEAN, CORRUPT))
    answer, foil = (WORDS(text)["input_ids"][0] for text in (ANSWER, FOIL))
    mean = torch.zeros_like(clean)
    for step in range(steps):
        between = (corrupt + step / steps * (clean - corrupt)).requires_grad_()
        logits = network(inputs_embeds=between).logits[0, -1]
        mean += torch.autograd.grad(logits[answer] - logits[foil], between)[0] / steps
    expected = ((clean - corrupt) * mean)[0, 2].sum()
    found = table(estimated(model, "eap-ig", ["resid_pre 0 @ 2"], steps=steps)).isel(sender=0)
    assert float(found.sel(receiver="every path")) == pytest.approx(float(expected), abs=2e-6)
    assert float(found.drop_sel(receiver="every path").sum()) == pytest.approx(float(expected), abs=2e-6)


# The result


def test_what_is_patched_is_what_a_trace_of_paths_measures():
    found = estimated(shared("llama"), "eap", verify=5, sample=7)
    exact = followed(shared("llama")).restoration
    assert [one.why for one in found.checked] == ["top"] * 5 + ["sample"] * 7
    for one in found.checked:
        at = {name: one.at[name] for name in ("sender", "receiver")}
        assert at["receiver"] != "every path"
        assert one.exact == pytest.approx(float(exact.sel(at)), abs=2e-5)
        assert one.estimate == float(table(found).sel(at))
    strongest = max(found.checked, key=_size)
    assert f"{strongest.at['sender']} → {strongest.at['receiver']}" in found.summary()
    assert list(found.verified.columns) == ["pair", "component", "sender", "receiver", "estimate", "exact", "why"]


def test_agreement_is_told_by_what_receives():
    found = estimated(shared("llama"), "reception", verify=20, sample=40, seed=1)
    names = [f"path → {word}" for word in ("q", "k", "v", "mlp_out", "logits")]
    assert list(found.agreement.index) == names
    for name in names:
        mine = [one for one in found.checked if one.at["receiver"].split()[0] == name.removeprefix("path → ")]
        row = found.agreement.loc[name]
        assert row.verified + row.sampled == len(mine)
        if len(mine) > 1:
            said, exact = ([getattr(one, each) for one in mine] for each in ("estimate", "exact"))
            assert row.pearson == pytest.approx(np.corrcoef(said, exact)[0, 1])
    assert found.agreement.verified.sum() == 20
    assert found.agreement.sampled.sum() == 40
    status = found.of("paths").status.sel(metric="logit_diff").drop_sel(receiver="every path")
    assert found.agreements.sites.sum() == int(status.isin(["ok", "not_patched"]).sum())
    assert "paths to the logits are measured" in found.summary()
    assert "<th>path</th>" in found.to_html()
    assert "nan" not in estimated(shared("llama"), "eap").summary()


def _size(one: Checked) -> float:
    return abs(one.exact)


def test_estimates_of_paths_are_saved_shown_and_repeated(tmp_path: Any):
    found = estimated(shared("llama"), "reception", verify=4, sample=4)
    found.save(tmp_path / "saved")
    opened = type(found).open(tmp_path / "saved")
    assert opened.verified.equals(found.verified)
    assert opened.summary() == found.summary()
    page = found.to_html()
    assert "exact reception" in page
    assert "attn_out 1 @ all" in page
    assert found.to_dict()["estimates"]["path"]
    assert found.provenance["options"]["senders"] == SENDERS


def test_all_senders_and_receivers_are_the_default():
    found = table(estimated(shared("llama"), "eap", senders=None, receivers=None, at="all"))
    assert found.sizes["sender"] == LAYERS * HEADS + LAYERS + 1
    assert found.sizes["receiver"] == LAYERS * (HEADS + 2 * KEYS + 1) + 2


def _refused(error: type[Exception], method: str, told: str, model: Any = None, **options: Any) -> None:
    with pytest.raises(error, match=told):
        ct.attribute(model or shared("llama"), PAIR, method=method, progress=False, **options)


@pytest.mark.parametrize("method", METHODS)
def test_at_each_token_every_edge_is_estimated_and_the_strongest_are_patched(method: str):
    model = exact_model("llama")
    found = estimated(model, method, ["each z @ each", "mlp_out 0 @ each"], verify=5, sample=3)
    every, shown = table(found), found.of("paths").sel(metric="logit_diff", pair="pair-0", component="path")
    assert every.sizes["sender"] == (LAYERS * HEADS + 1) * (LAST + 1)
    for position in (2, 3, LAST):
        alone = table(estimated(model, method, [f"each z @ {position}", f"mlp_out 0 @ {position}"]))
        assert_allclose(every.sel(sender=alone.sender), alone, atol=1e-12)
    status, effect = shown.status.drop_sel(receiver="every path"), shown.restoration.drop_sel(receiver="every path")
    assert {*np.unique(status.values.astype(str))} == {"ok", "not_patched", "structural_zero"}
    assert int((status == "ok").sum()) == 5 + 3
    assert effect.where(status == "not_patched").isnull().all()  # never a zero that was not measured
    assert effect.where(status == "ok").count() == 5 + 3
    sizes = abs(every.drop_sel(receiver="every path"))
    top = sizes.where(status == "ok").stack(edge=["sender", "receiver"]).dropna("edge").max()
    assert float(top) == float(sizes.max())


def test_a_map_that_is_too_large_says_what_to_do():
    asked = Options(components=(), senders=["each z @ each"], receivers=EVERY_READER)

    def planned(most: int) -> list[Any]:
        return [*path_grids(shared("llama"), tokenize_pairs([PAIR], WORDS), asked, ["restoration"], most=most)]

    cells = LAYERS * HEADS * (LAST + 1) * (LAYERS * (HEADS + 2 * KEYS + 1) + 2)
    assert len([*planned(cells)[0].cells()]) == cells
    with pytest.raises(InvalidOption, match="cells is too large. Name fewer, or estimate them and patch the strongest"):
        planned(cells - 1)


def test_each_token_needs_prompts_of_one_length():
    pairs = [ct.Pair(clean=text, corrupt=text.replace("w11", "w31"), answer=ANSWER, foil=FOIL, id=name)
             for name, text in (("short", " w11 w12 w13"), ("long", CLEAN))]  # fmt: skip
    with pytest.raises(InvalidPair, match="is at each token by itself, and pairs 'short' and 'long' have 3 and 6"):
        ct.attribute(shared("llama"), pairs, method="eap", at="each", progress=False)


def test_what_cannot_be_meant_is_refused():
    _refused(InvalidOption, "atp", "estimates sites", senders=["z 0.1 @ last"])
    _refused(InvalidOption, "ig", "estimates sites", at=2)
    _refused(InvalidOption, "eap", "components= are sites", components=["z"])
    _refused(InvalidOption, "reception", "leave at=2 out", senders=["z 0.1 @ last"], at=2)
    _refused(InvalidOption, "edges", "eap-ig")


def test_of_the_logits_alone_nothing_is_pulled_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("causal_tracing.engine.network.pulled_back", None)
    found = table(estimated(shared("llama"), "eap", receivers=["logits"]))
    assert float(abs(found.sel(receiver="logits")).max()) > 1e-3


@pytest.mark.parametrize("name", BETWEEN)
def test_slopes_at_a_stream_that_is_normed_between_are_refused(name: str):
    _refused(ComponentNotOffered, "eap", 'normed .*method="reception"', model=shared(name))
    found = table(estimated(shared(name), "reception"))
    assert float(abs(found).max()) > 1e-3


def test_the_way_between_prompts_of_different_lengths_is_refused():
    pair = ct.Pair(clean=CLEAN, corrupt=" w17" + CORRUPT, answer=" w7", foil=" w8")
    with pytest.raises(InvalidOption, match="6 and 7 tokens|7 and 6 tokens"):
        ct.attribute(shared("llama"), pair, method="eap-ig", align="suffix", progress=False)


class FourQuestions:
    """A backend that answers what every backend must, and no more."""

    def __init__(self, *asked: Any) -> None:
        real = open_backend(*asked)
        self.describe, self.record, self.evaluate, self.gradients = (
            getattr(real, name) for name in ("describe", "record", "evaluate", "gradients")
        )


def test_a_backend_that_reads_no_parts_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("causal_tracing.experiments.attribute.open_backend", FourQuestions)
    _refused(ComponentNotOffered, "eap", "reads single parts of layers")
