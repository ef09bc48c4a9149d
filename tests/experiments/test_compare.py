"""Traces of a model against each other: other corruptions, other lengths, heads and neurons; and the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from typer.testing import CliRunner

import causal_tracing as ct
from causal_tracing.cli.app import app
from causal_tracing.errors import InvalidOption
from causal_tracing.models.model import Model
from causal_tracing.report.words.comparison import DENOMINATORS
from causal_tracing.results.statistics.bootstrap import OF_SIDE, Reason
from joint import tiny
from made import longer, pair, taken_apart

EFFECTS = ("restoration", "disruption", "interaction")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def other(n: int) -> ct.Pair:
    """The same pair with another corruption."""
    return pair(n, id=f"p{n}", corrupt=f" w11 w{70 + n} w13 w14", corrupt_subject=f"w{70 + n}")


@pytest.fixture(scope="module")
def traces(model: Model) -> tuple[ct.Trace, ct.Trace]:
    first = ct.trace(model, [pair(n, id=f"p{n}") for n in range(10)])
    second = ct.trace(model, [other(n) for n in range(10)], components=["mlp_out", "resid_post"], layers=[3, 1])
    return first, second


def test_two_corruptions_of_the_same_pairs(traces: tuple[ct.Trace, ct.Trace]):
    found = ct.compare(*traces)
    assert found.only_first == {"components": ("attn_out",), "layers": (0, 2)}
    assert not found.only_second
    at = {"metric": "logit_diff", "component": "mlp_out", "layer": 1, "position": 1}
    values = traces[0].effects.disruption.sel(at).values - traces[1].effects.disruption.sel(at).values
    cell = found.cells.sel(component="mlp_out", layer=1, position=1)
    assert cell.disruption.item() == pytest.approx(values.mean())
    flips = stats.permutation_test(
        (values,), lambda x: abs(np.mean(x) / np.std(x, ddof=1)), permutation_type="samples", alternative="greater"
    )
    assert cell.disruption_p.item() == pytest.approx(flips.pvalue)
    assert (found.cells.status.sel(position=0) == "structural_zero").all()
    said = found.summary()
    assert "corrupt prompt of 10 of 10 pairs, as of p0" in said
    assert 'first " w11 w50 w13 w14", second " w11 w70 w13 w14"' in said
    assert "layers: first [0, 1, 2, 3], second [3, 1]" in said or "layers: first [0, 1, 2, 3], second [1, 3]" in said


def test_prompts_of_other_lengths_meet_by_role(model: Model):
    short, long = ([make(n) for n in range(9)] for make in (pair, longer))
    first, second = ct.trace(model, short), ct.trace(model, long)
    found = ct.compare(first, second)
    assert found.cells.position.values.tolist() == ["before_subject", "subject_last", "next", "last"]
    assert found.only_second == {"positions": ("subject_first", "further")}
    at = {"metric": "logit_diff", "component": "mlp_out", "layer": 1}
    one, two = (trace.effects.restoration.sel(at).transpose("pair", "position").values for trace in (first, second))
    expected = [one[:, 0] - two[:, :2].mean(1), one[:, 1] - two[:, 3], one[:, 2] - two[:, 4], one[:, 3] - two[:, 6]]
    assert_allclose(found.cells.restoration.sel(component="mlp_out", layer=1), np.mean(expected, axis=1), atol=1e-12)
    assert "9 of 9 pairs have the same id and another clean prompt: are they the same pairs?" in found.summary()


def test_why_a_fraction_is_undefined_is_a_reason_by_its_side():
    assert {reason.removeprefix(f"{side}: ") for side, names in OF_SIDE.items() for reason in names.values()} == {
        Reason.NEAR_ZERO, Reason.ZERO,
    }  # fmt: skip
    assert {*DENOMINATORS} == {*OF_SIDE["first"]} == {*OF_SIDE["second"]}


def test_tokens_beside_roles_are_compared_by_role(model: Model):
    """Token 2 has one role in each trace, and another in the other: `last` is compared, token 2 only by its role."""
    some: dict[str, Any] = {"components": ["mlp_out"], "positions": [2, "last"]}
    short, long = (ct.trace(model, [make(n) for n in range(9)], **some) for make in (pair, longer))
    found = ct.compare(short, long)
    assert 2 not in found.cells.position.values.tolist()
    assert found.cells.clusters.sel(position="last").values.tolist() == [[9] * 4]
    one, other = (
        trace.effects.restoration.sel(metric="logit_diff", position="last").mean("pair") for trace in (short, long)
    )
    assert_allclose(found.cells.restoration.sel(position="last"), one - other, atol=1e-12)
    assert found.cells.restoration.sel(position="next").isnull().all()
    alone = ct.compare(ct.trace(model, [pair(n) for n in range(9)], components=["mlp_out"]), short)
    assert alone.cells.position.values.tolist() == [2]


def test_columns_of_other_kinds_are_an_error(model: Model, traces: tuple[ct.Trace, ct.Trace]):
    roles = ct.trace(model, [other(n) for n in range(3)], positions=["subject_last", "last"])
    message = (
        r"columns of the first trace are token positions, those of the second roles \(subject_last, last\): "
        r"they do not mean the same. Trace both with the same positions=."
    )
    with pytest.raises(InvalidOption, match=message):
        ct.compare(traces[0], roles)
    together = ct.trace(model, [other(n) for n in range(3)], positions="together")
    with pytest.raises(InvalidOption, match="no positions in common: the first has subject_last, last, the second tog"):
        ct.compare(roles, together)
    assert ct.compare(roles, roles).cells.position.values.tolist() == ["subject_last", "last"]


def test_without_directions_in_common_nothing_is_compared(model: Model):
    pairs = [other(n) for n in range(3)]
    one, two = (ct.trace(model, pairs, directions=[name]) for name in ("restoration", "disruption"))
    with pytest.raises(InvalidOption, match="no effects in common: the first has restoration, the second disruption"):
        ct.compare(one, two)
    both = ct.compare(one, ct.trace(model, pairs))
    assert both.only_second == {"effects": ("disruption", "interaction")}
    assert "disruption" not in both.cells


def test_the_same_prompts_in_other_tokens_are_said(traces: tuple[ct.Trace, ct.Trace]):
    first = traces[0].measurements
    data = first.numbers().copy(deep=True)
    data.clean_token.values[2, 1:3] = [" w2", "2 w13"]
    found = ct.compare(traces[0], ct.Trace(taken_apart(data, first.provenance)))
    assert "The same prompts are cut into other tokens: a position is not the same text in both." in found.warnings
    assert not ct.compare(*traces).warnings


@pytest.mark.parametrize("of", ["heads", "neurons"])
def test_single_heads_and_neurons_are_compared_pair_by_pair(model: Model, of: str):
    asked: dict[str, Any] = {"components": ["mlp_out"], "heads": ["z", "k"]}
    pairs, others = [pair(n, id=f"p{n}") for n in range(9)], [pair(n, id=f"p{n}", foil=" w9") for n in range(9)]
    first = ct.trace(model, pairs, neurons={1: [0, 3, 5]}, **asked)
    second = ct.trace(model, others, neurons={1: [0, 3, 4]}, **asked)
    found = ct.compare(first, second, of=of)
    unit, same = of[:-1], [0, 3] if of == "neurons" else [0, 1, 2, 3]
    for name in EFFECTS:
        one, other = (
            getattr(trace, of)[name].sel(metric="logit_diff").sel({unit: same}).transpose("pair", ..., "position")
            for trace in (first, second)
        )
        if of == "neurons":
            one, other = one.sel(layer=[1]), other.sel(layer=[1])
        assert found.cells[name].dims == ("component", "layer", unit, "position")
        assert_allclose(found.cells[name], (one - other).mean("pair"), atol=1e-12)
        assert_allclose(found.cells[f"{name}_second"], other.mean("pair"), atol=1e-12)
    component = str(found.cells.component.values[0])
    here = found.cells.sel(component=component)
    size = abs(here.restoration.where(here.status == "ok"))
    layer, one, _ = np.unravel_index(int(size.fillna(-1).values.argmax()), size.shape)
    place = f"layer {int(size.layer[layer])}, {unit} {int(size[unit][one])}"
    assert f"Largest difference of {component}: {place} at " in found.summary()
    assert json.loads(json.dumps(found.to_dict()))["of"] == of
    if of == "neurons":
        assert found.only_first[of] == (5,)
        assert found.only_second[of] == (4,)
    with pytest.raises(InvalidOption, match=f"The second trace has no {of}. It has blocks"):
        ct.compare(first, ct.trace(model, others, components=["mlp_out"]), of=of)
    with pytest.raises(InvalidOption, match="There is nothing called 'head'"):
        ct.compare(first, second, of="head")


def test_the_command_compares_both_kinds_of_folder(model: Model, traces: tuple[ct.Trace, ct.Trace], tmp_path: Path):
    traces[1].save(tmp_path / "saved")
    ct.run(model, [pair(n, id=f"p{n}") for n in range(10)], tmp_path / "run")
    folders = [str(tmp_path / name) for name in ("run", "saved")]
    done = CliRunner().invoke(app, ["compare", *folders, "--out", str(tmp_path / "found.json")])
    assert done.exit_code == 0, done.output
    for text in (
        "mean paired difference over 10 pairs",
        "resid_post: difference of restoration, ",
        "token 3",
        "not why",
    ):
        assert text in done.stdout
    written = json.loads((tmp_path / "found.json").read_text())
    done = CliRunner().invoke(app, ["compare", *folders, "--json"])
    assert json.loads(done.stdout) == written
    assert written["cells"].keys() == {*EFFECTS}
    done = CliRunner().invoke(app, ["compare", *folders, "--metric", "prob", "--second-metric", "log_prob", "--json"])
    assert json.loads(done.stdout)["reason"] == "the first is in probability, the second in nats"
    done = CliRunner().invoke(app, ["compare", *folders, "--second-metric", "prob"])
    assert done.exit_code == 0
    assert "difference of restoration, " not in done.stdout
    done = CliRunner().invoke(app, ["compare", folders[0], str(tmp_path / "none")])
    assert "none is not there" in str(done.exception)
