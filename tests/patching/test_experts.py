"""Maps of single experts: against bare hooks, with exact zeros where no token goes, in all that a trace leaves."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor
from typer.testing import CliRunner

import causal_tracing as ct
from causal_tracing.cli.app import app
from causal_tracing.errors import ComponentNotOffered, InvalidOption
from causal_tracing.models.model import Model
from causal_tracing.report.words.method import how_to_read, not_shown
from joint import CLEAN, CORRUPT, LAST, PAIR, WORDS, others, tiny

matplotlib.use("agg")
FAMILIES = ("mixtral", "deepseek_v3")  # all layers with experts; the first without, and with some that are shared
LAYERS, EXPERTS, ALONG = 4, 4, ["layer", "expert"]
ASKED: dict[str, Any] = {"components": [], "experts": True, "progress": False}


class ByHand:
    """Forwards in which a layer's experts are called by hand: their parts are looked at, or changed at the last token.

    No part of the package makes these numbers.
    """

    def __init__(self, family: str) -> None:
        self.network: Any = tiny(family).network
        self.known: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def logit_diff(self, text: str) -> float:
        ids = WORDS(text)["input_ids"]
        with torch.no_grad():
            logits = self.network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        right, wrong = (WORDS(text)["input_ids"][0] for text in (" w7", " w8"))
        return (logits[right] - logits[wrong]).item()

    def seen(self, text: str, layer: int) -> tuple[Tensor, Tensor]:
        """The parts of all experts at the last token [expert, d_model], and the experts that it goes to."""
        if (text, layer) not in self.known:
            module = self.network.model.layers[layer].mlp.experts
            calls: list[Any] = []
            handle = module.register_forward_pre_hook(lambda _, args: calls.append(args))
            self.logit_diff(text)
            handle.remove()
            hidden, index, weights = calls[0]
            with torch.no_grad():
                found = [module.forward(hidden, index, weights * (index == expert))[-1] for expert in range(EXPERTS)]
            self.known[text, layer] = torch.stack(found), index[-1]
        return self.known[text, layer]

    def patched(self, base: str, donor: str, layer: int, expert: int) -> float:
        change = self.seen(donor, layer)[0][expert] - self.seen(base, layer)[0][expert]

        def add(_: Any, __: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[-1] += change
            return output

        handle = self.network.model.layers[layer].mlp.experts.register_forward_hook(add)
        found = self.logit_diff(base)
        handle.remove()
        return found


def first_layer(family: str) -> int:
    return 1 if family == "deepseek_v3" else 0


def traced(family: str = "mixtral", pairs: Any = PAIR, **options: Any) -> ct.Trace:
    asked: dict[str, Any] = ASKED | {"spot_checks": 0} | options
    return ct.trace(tiny(family), pairs, **asked)


def grid(trace: ct.Trace, name: str) -> np.ndarray:
    found = trace.of("experts")
    found = found.sel(metric="logit_diff") if "metric" in found[name].dims else found
    return found[name].squeeze(["pair", "component", "position"], drop=True).transpose(*ALONG).values


@pytest.mark.parametrize("engine", ["packed", "replay"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_of_experts_is_what_bare_hooks_give(family: str, engine: str) -> None:
    trace, hand = traced(family, engine=engine), ByHand(family)
    clean, corrupt = hand.logit_diff(CLEAN), hand.logit_diff(CORRUPT)
    layers = trace.of("experts").layer.values.tolist()
    assert layers == [*range(first_layer(family), LAYERS)]
    restored = [[hand.patched(CORRUPT, CLEAN, n, e) - corrupt for e in range(EXPERTS)] for n in layers]
    lost = [[clean - hand.patched(CLEAN, CORRUPT, n, e) for e in range(EXPERTS)] for n in layers]
    assert_allclose(grid(trace, "restoration"), restored, atol=1e-4)
    assert_allclose(grid(trace, "disruption"), lost, atol=1e-4)
    assert abs(np.array(restored)).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_that_no_token_goes_to_are_exact_zeros_and_not_run(family: str) -> None:
    trace, hand = traced(family), ByHand(family)
    layers = range(first_layer(family), LAYERS)
    chosen = [
        [any(e in hand.seen(text, n)[1].tolist() for text in (CLEAN, CORRUPT)) for e in range(EXPERTS)] for n in layers
    ]
    assert_array_equal(grid(trace, "status") == "ok", chosen)
    assert_array_equal(grid(trace, "status") == "structural_zero", ~np.array(chosen))
    assert (grid(trace, "restoration")[~np.array(chosen)] == 0).all()
    assert 0 < np.sum(chosen) < np.size(chosen)
    cost = ct.estimate(tiny(family), PAIR, components=[], experts=True)
    assert cost.worlds - cost.worlds_skipped == 2 * np.sum(chosen) + 2


def test_an_expert_that_one_run_alone_goes_to_is_run() -> None:
    hand = ByHand("mixtral")
    alone = [
        (layer, expert)
        for layer, expert in product(range(LAYERS), range(EXPERTS))
        if (expert in hand.seen(CLEAN, layer)[1]) != (expert in hand.seen(CORRUPT, layer)[1])
    ]
    assert alone
    found = grid(traced(), "status")
    assert all(found[at] == "ok" for at in alone)


def test_zeros_and_means_of_experts_that_are_not_there_are_known_too() -> None:
    hand = ByHand("mixtral")
    there = [[e in hand.seen(CLEAN, n)[1].tolist() for e in range(EXPERTS)] for n in range(LAYERS)]
    zeroed = traced(write="zero")
    assert_array_equal(grid(zeroed, "status") == "ok", there)
    mean = traced(write=ct.Write("mean", prompts=[CLEAN, CORRUPT]))
    either = [[e in hand.seen(CORRUPT, n)[1].tolist() for e in range(EXPERTS)] for n in range(LAYERS)]
    assert_array_equal(grid(mean, "status") == "ok", np.array(there) | np.array(either))


def test_all_experts_together_are_the_mlp_where_nothing_stands_beside_them() -> None:
    sites = {f"experts of {n}": [f"experts {n}.0-3 @ last"] for n in range(LAYERS)}
    sites |= {f"router and read {n}": [f"router {n} @ last", f"experts_in {n} @ last"] for n in range(LAYERS)}
    sites |= {f"mlp {n}": [f"mlp_out {n} @ last"] for n in range(LAYERS)}
    trace = ct.trace(tiny("mixtral"), PAIR, components=[], sets=sites, progress=False)
    found = trace.of("sets").sel(metric="logit_diff").squeeze(["pair", "component"], drop=True)
    for direction, n in product(("restoration", "disruption"), range(LAYERS)):
        whole = found[direction].sel(set=f"mlp {n}").item()
        assert found[direction].sel(set=f"experts of {n}").item() == pytest.approx(whole, abs=1e-4)
        assert found[direction].sel(set=f"router and read {n}").item() == pytest.approx(whole, abs=1e-4)
    assert abs(found.restoration).max() > 0.1


def test_routers_are_components_of_layers() -> None:
    trace = traced("deepseek_v3", components=["mlp_out", "router", "experts_in"], experts=False, spot_checks=4)
    found = trace.effects.restoration.sel(metric="logit_diff").isel(pair=0)
    status = trace.effects.status.sel(metric="logit_diff").isel(pair=0)
    assert (status.sel(component="router", layer=0) == "unpaired").all()
    assert found.sel(component="router", layer=0).isnull().all()
    assert abs(found.sel(component=["router", "experts_in"], layer=[1, 2, 3], position=LAST)).max() > 0.01
    wide = traced("deepseek_v3", components=["router"], window=2, experts=False)
    status = wide.effects.status.sel(metric="logit_diff").isel(pair=0, component=0, position=LAST)
    assert status.values.tolist() == ["no_window", "ok", "ok", "no_window"]  # the first layer is dense


def test_listed_experts_alone_and_layers_that_have_none() -> None:
    trace = traced(experts={2: [1, 3], 0: []}, expert_positions=["subject_last", "last"])
    found = trace.of("experts")
    assert found.layer.values.tolist() == [0, 2]
    there = (found.status.sel(metric="logit_diff") != "unpaired").isel(pair=0, component=0, position=1)
    assert there.values.tolist() == [[True] * 4, [False, True, False, True]]
    assert traced("deepseek_v3", layers=[0, 2]).of("experts").layer.values.tolist() == [2]
    with pytest.raises(ComponentNotOffered, match=r"not there in layer 0 .* 1, 2, 3"):
        traced("deepseek_v3", experts={0: [1]})
    with pytest.raises(ComponentNotOffered, match="not there in layer 0"):
        traced("deepseek_v3", components=["router"], layers=[0])
    with pytest.raises(InvalidOption, match="There is no expert 4: layer 1 of tiny has experts 0 to 3"):
        traced(experts={1: [4]})
    with pytest.raises(InvalidOption, match=r"experts= is True .all experts of the layers., or a mapping"):
        traced(experts={})
    with pytest.raises(ComponentNotOffered, match="experts is not offered on this model"):
        traced("llama")


def test_direct_paths_of_experts_keep_their_own_mlp_live() -> None:
    trace = traced(direct=["mlps_frozen"])
    whole = ct.trace(tiny("mixtral"), PAIR, components=["mlp_out"], direct=["mlps_frozen"], progress=False)
    last = trace.of("experts").sel(layer=3)
    assert_allclose(last.direct_path_restoration, last.restoration, atol=1e-5)  # nothing comes behind
    assert abs(last.restoration).max() > 0.01
    one = trace.of("experts").direct_path_restoration.sel(metric="logit_diff", layer=1)
    mlp = whole.effects.direct_path_restoration.sel(metric="logit_diff", layer=1, position=LAST)
    assert abs(one).max() > 0.01
    assert np.isfinite(mlp).all()


def test_all_that_is_left_of_a_trace_has_experts(tmp_path: Path) -> None:
    trace = traced(pairs=others(3), spot_checks=4)
    trace.save(tmp_path / "saved")
    again = ct.open_trace(tmp_path / "saved")
    assert again.of("experts").identical(trace.of("experts"))
    assert "expert " in trace.summary()
    assert trace.top(of="experts").part.iloc[0] in range(EXPERTS)
    assert {"layer", "expert", "position"} <= {*trace.to_dataframe("experts").columns}
    assert trace.evidence("experts").cells.sizes["expert"] == EXPERTS
    trace.plot("experts")
    page = tmp_path / "page.html"
    trace.to_html(page)
    assert 'id="experts-section"' in page.read_text(encoding="utf-8")
    ran = ct.run(tiny("mixtral"), others(3), tmp_path / "run", **ASKED, spot_checks=0)
    assert_allclose(ran.of("experts").restoration, trace.of("experts").restoration, atol=1e-5)


def test_files_numbers_and_comparisons_have_experts(tmp_path: Path) -> None:
    trace = traced("deepseek_v3", pairs=others(8), components=["mlp_out", "router"])
    table = trace.to_dataframe("experts")
    assert {*table.expert} == {*range(EXPERTS)}
    for ending, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
        again = read(trace.export(tmp_path / f"experts{ending}", "experts"))
        assert_allclose(again.logit_diff, table.logit_diff)
        assert_array_equal(again[["layer", "expert"]], table[["layer", "expert"]])
    with xr.open_dataset(trace.export(tmp_path / "experts.nc", "experts"), engine="h5netcdf") as arrays:
        assert_allclose(arrays.restoration, trace.of("experts").restoration)
    hub = trace.to_hub(tmp_path / "hub")
    assert len(pd.read_parquet(hub / "experts.parquet")) == len(table)
    assert "- config_name: experts\n  data_files: experts.parquet" in (hub / "README.md").read_text(encoding="utf-8")
    numbers, cells = trace.scalars(), trace.evidence("experts").cells.restoration
    assert abs(numbers["experts/restoration"]) == pytest.approx(float(abs(cells).max()))
    assert numbers["router/layer"] in (1, 2, 3)
    zeroed = traced("deepseek_v3", pairs=others(8), write="zero")
    compared = ct.compare(trace, zeroed, of="experts")
    apart = (trace.of("experts").disruption - zeroed.of("experts").disruption).sel(metric="logit_diff").mean("pair")
    found = compared.cells.disruption.transpose(*apart.dims).values
    assert_allclose(found, apart, atol=1e-5)
    assert abs(found).max() > 0.1
    assert "Largest difference of experts: layer " in compared.summary()


def test_the_words_say_which_of_the_three_is_exchanged() -> None:
    trace = traced(components=["router", "experts_in"])
    read = "\n".join(how_to_read(trace.measurements))
    assert "router: the weights of all experts are the other run's" in read
    assert "experts_in: what the experts read is the other run's" in read
    assert "the token goes to in neither run is a structural zero" in read
    assert any("How often an expert is chosen" in each for each in not_shown(trace.measurements))
    plain = ct.trace(tiny("mixtral"), PAIR, components=["mlp_out"], progress=False).measurements
    assert not any("expert" in each for each in (*how_to_read(plain), *not_shown(plain)))


def test_experts_can_be_given_in_an_edited_world() -> None:
    trace = traced(given=["experts 1.0-3 @ last"])
    status = grid(trace, "status")
    assert (status[1] == "given").all()
    assert (status[2] == "ok").any()


def test_a_command_and_a_file_ask_for_experts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(name: str, **_: Any) -> Model:
        return replace(tiny("mixtral"), name=name, source={"kind": "folder"})

    monkeypatch.setattr(ct, "load", load)

    def ask(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["trace", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    pair = ["--clean", CLEAN, "--corrupt", CORRUPT, "--answer", " w7", "--foil", " w8", "--subject", " w12 w13"]
    common = ["--model", "tiny", *pair, "--corrupt-subject", " w12 w43", "--components", "none"]
    found = json.loads(ask(*common, "--experts", "2:1+3,0", "--expert-positions", "last", "--json"))
    assert (found["components"], found["layers"]) == (["experts"], [0, 2])  # the first kind of this trace
    assert found["provenance"]["options"]["experts"] == {"0": [], "2": [1, 3]}
    file = tmp_path / "asked.toml"
    lines = [f'{key} = "{value}"' for key, value in zip([f[2:] for f in common[:-4:2]], common[1:-4:2], strict=True)]
    said = '\ncorrupt_subject = " w12 w43"\ncomponents = []\nexperts = {2 = [1, 3], 0 = []}\n'
    file.write_text("\n".join(lines) + said, encoding="utf-8")
    again = json.loads(ask("--config", str(file), "--json"))
    assert again["effects"] == found["effects"]
    assert "worlds" in ask(*common, "--experts", "all", "--dry-run")
