"""TransformerLens' results, by the names of their parts: axes get our names, restoration is values minus baseline."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import causal_tracing as ct
from causal_tracing.errors import InvalidOption


@dataclass
class PatchingResult:
    """What TransformerLens 4.3 returns, by its fields."""

    values: Any
    axis_names: list[str]
    index_df: pd.DataFrame
    metric_names: list[str]
    reduced: bool
    baseline: Any = None
    has_metric_axis: bool = False
    patch_type_names: list[str] | None = None


def swept(*shape: int) -> torch.Tensor:
    return torch.arange(float(np.prod(shape))).reshape(shape)


def index(**sizes: int) -> pd.DataFrame:
    return pd.MultiIndex.from_product([range(size) for size in sizes.values()], names=[*sizes]).to_frame(index=False)


def result(values: torch.Tensor, axes: list[str], **fields: Any) -> PatchingResult:
    given: dict[str, Any] = {"index_df": index(layer=1), "metric_names": ["metric"], "reduced": False} | fields
    return PatchingResult(values=values, axis_names=axes, **given)


def test_every_example_is_a_pair_and_the_axes_are_named_as_ours():
    values = swept(2, 3, 4).requires_grad_()
    found = ct.from_transformer_lens(result(values, ["layer", "pos"], baseline=torch.tensor([10.0, 20.0, 30.0, 40.0])))
    assert found.restoration.dims == ("metric", "pair", "layer", "position")
    assert found.restoration.sel(pair="pair-2", layer=1, position=2).item() == 22 - 30
    assert found.metric.values.tolist() == ["metric"]
    assert "total_effect" not in found


def test_several_metrics_and_averaged_examples():
    made = result(
        swept(2, 3, 5), ["layer", "head_index"], reduced=True, has_metric_axis=True, baseline=torch.tensor([1.0, 2.0]),
        metric_names=["logit_diff", "prob"],
    )  # fmt: skip
    found = ct.from_transformer_lens(made, clean=[3.0, 2.0])
    assert found.restoration.dims == ("metric", "pair", "layer", "head")
    assert found.restoration.sel(metric="prob", layer=2, head=4).item() == 29 - 2
    assert found.total_effect.values.tolist() == [[2.0], [0.0]]
    assert found.restored_fraction.sel(metric="logit_diff", layer=0, head=1).item() == 0.0
    assert np.isnan(found.restored_fraction.sel(metric="prob")).all()  # nothing to divide by


def test_rows_of_an_index_become_axes_and_what_was_not_swept_is_nan():
    rows = index(layer=2, pos=3).drop(index=[4])
    made = result(swept(5, 1), [], index_df=rows, baseline=torch.zeros(1))
    found = ct.from_transformer_lens(made).restoration
    assert found.dims == ("metric", "pair", "layer", "position")
    assert found.values.reshape(2, 3).tolist()[0] == [0, 1, 2]
    assert found.sel(layer=1, position=2).item() == 4
    assert np.isnan(found.sel(layer=1, position=1).item())


def test_what_was_patched_is_the_component_and_padded_heads_are_nan():
    values = swept(3, 2, 4, 1) + 1
    values[1, :, 2:] = 0  # two key heads
    made = result(values, ["patch_type", "layer", "head"], baseline=torch.ones(1), patch_type_names=["out", "k", "v"])
    found = ct.from_transformer_lens(made).restoration
    assert found.dims == ("metric", "pair", "component", "layer", "head")
    assert np.isnan(found.sel(component="k", head=[2, 3])).all()
    assert found.sel(component="k", layer=1, head=1).item() == values[1, 1, 1] - 1
    assert not np.isnan(found.sel(component=["out", "v"])).any()


def test_tokens_label_the_positions():
    made = result(swept(2, 3, 1), ["layer", "pos"], baseline=torch.zeros(1))
    assert ct.from_transformer_lens(made, tokens=["a", " b", " c"]).clean_token.values.tolist() == ["a", " b", " c"]
    for tokens in (["a"], "abc"):
        with pytest.raises(InvalidOption, match="tokens= must be 3 texts, one for each position"):
            ct.from_transformer_lens(made, tokens=tokens)


def test_what_is_no_result_is_refused():
    with pytest.raises(InvalidOption, match="This is Tensor, which has no axis_names, .*baseline=True and reduce"):
        ct.from_transformer_lens(swept(2, 3))
    with pytest.raises(
        InvalidOption, match="has no baseline, so that no effect is known. Run the sweep with baseline=True"
    ):
        ct.from_transformer_lens(result(swept(2, 3, 1), ["layer", "pos"]))
    made = result(swept(2, 3, 1), ["layer", "pos"], baseline=torch.zeros(1))
    with pytest.raises(InvalidOption, match=r"clean= has the shape \(\), and its axes should be \['pair'\]"):
        ct.from_transformer_lens(made, clean=3.0)
    with pytest.raises(InvalidOption, match=r"values has the shape \(2, 3\), and its axes should be \['layer', 'pos"):
        ct.from_transformer_lens(result(swept(2, 3), ["layer", "pos"], baseline=torch.zeros(1)))
