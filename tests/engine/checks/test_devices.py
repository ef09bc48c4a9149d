"""Devices that do not repeat a forward to the bit, or make products with fewer bits, are not taken for bad models."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from causal_tracing.engine.checks import check, findings
from causal_tracing.engine.checks.bounds import ONE_FORWARD
from causal_tracing.engine.checks.check import accept, prove
from causal_tracing.errors import EngineNote, UnsupportedModel
from causal_tracing.interventions.sites import MEDIATORS
from causal_tracing.models.model import Model
from families import FAMILIES, build
from tiny import tiny_tokenizer

OWN = "its own activations change nothing"
WHOLE = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


def restless(size: float) -> nn.Module:
    """A tiny Llama whose MLPs add up in no fixed order: calls are apart by about this share."""
    network = build(next(family for family in FAMILIES if family.name == "llama"))
    random = torch.Generator().manual_seed(0)

    def shaken(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output * (1 + size * torch.randn(output.shape, generator=random))

    for layer in network.model.layers:
        layer.mlp.down_proj.register_forward_hook(shaken)
    return network


def accepted(network: nn.Module) -> Model:
    model = accept(network, tiny_tokenizer(), name="restless")
    return prove(model, model.anatomy.mediators)[0]


def test_kernels_that_add_in_no_fixed_order_refuse_nothing():
    model = accepted(restless(1e-7))
    assert model.anatomy.components == WHOLE
    assert model.anatomy.mediators == MEDIATORS
    own = [finding for finding in check.check(model).findings if finding.name == OWN]
    assert {finding.components[0] for finding in own} == {*WHOLE, *MEDIATORS}
    assert any(0 < finding.difference <= finding.bound for finding in own)
    assert all(finding.bound <= ONE_FORWARD["float32"] for finding in own)


def test_where_forwards_are_repeated_the_bound_is_zero():
    own = [finding for finding in check.check(accepted(restless(0.0))).findings if finding.name == OWN]
    assert {(finding.difference, finding.bound) for finding in own} == {(0.0, 0.0)}


def test_what_is_apart_by_more_than_rounding_is_no_kernels_order():
    with pytest.raises(UnsupportedModel, match="restless cannot be traced"):
        accepted(restless(1e-2))


@pytest.mark.parametrize("size", [0.0, 1e-7])
def test_an_engine_that_writes_something_else_is_seen_all_the_same(size: float, monkeypatch: pytest.MonkeyPatch):
    network = restless(size)
    forward = findings.forward

    def wrong(model: Model, runs, donors, **options):
        logits, values = forward(model, runs, donors, **options)
        return (logits * (1 + 1e-5) if runs[0].edits else logits), values

    monkeypatch.setattr(findings, "forward", wrong)
    with pytest.raises(UnsupportedModel, match=rf"do not behave as layers do \({OWN}: measured .*, bound"):
        accepted(network)


def test_products_with_fewer_bits_are_said_before_anything_is_refused(monkeypatch: pytest.MonkeyPatch):
    network = restless(0.0)
    with monkeypatch.context() as patched:
        patched.setattr(check, "short_products", lambda device: device == torch.device("cpu"))
        with pytest.warns(EngineNote, match=r"cpu makes products of float32 with fewer .*precision\(\"highest\"\)"):
            accept(network, tiny_tokenizer(), name="short")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            accept(network.double(), tiny_tokenizer(), name="float64")
