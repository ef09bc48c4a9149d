"""What cannot be meant by noise, windows and severed parts, and pairs that noise has no place in."""

import pytest

import causal_tracing as ct
from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.models.model import Model
from causal_tracing.patching.noise import Noise
from joint import tiny
from noised_by_hand import NOISE, PAIR, PROMPT


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"directions": ["disruption"]}, InvalidOption, "With noise only restoration is measured"),
        ({"window": 5}, InvalidOption, "A window of 5 layers .* the model has 4 layers. Use 1 to 4"),
        ({"window": {"resid_mid": 2}}, InvalidOption, "There is no window for 'resid_mid'"),
        ({"sever": ["resid_post"]}, InvalidOption, "There is no part to sever 'resid_post'"),
        ({"sever": ["mlp_out"], "components": ["attn_out"]}, InvalidOption, "A severed effect is a restoration of"),
        ({"preset": "rom"}, InvalidOption, "There is no preset 'rom'"),
        ({"preset": "rome"}, InvalidOption, "sets noise .* leave out noise= or the preset"),
        (
            {"preset": "rome", "noise": None, "window": 3, "metric": "logit"},
            InvalidOption,
            "leave out window=, metric= or",
        ),
        ({"noise": ct.Noise(rome=True)}, InvalidOption, 'is a part of preset="rome"'),
    ],
)
def test_bad_options_are_said(model, options, error, message):
    with pytest.raises(error, match=message):
        ct.trace(model, PAIR, **({"noise": NOISE} | options))


def test_bad_pairs_are_said(model):
    with pytest.raises(InvalidPair, match="has no subject. Noise is added to the subject's tokens: give subject="):
        ct.trace(model, ct.Pair(clean=PROMPT, answer=" w7"), noise=NOISE)
    with pytest.raises(InvalidPair, match="has a corrupt prompt, and noise was asked for"):
        ct.trace(model, ct.Pair(clean=PROMPT, corrupt=PROMPT, answer=" w7", subject="w13"), noise=NOISE)
    with pytest.raises(InvalidPair, match="w99"):
        ct.trace(model, ct.Pair(clean=PROMPT, answer=" w7", subject="w99"), noise=NOISE)
    with pytest.raises(InvalidPair, match="answer and foil are the same token"):
        ct.trace(model, ct.Pair(clean=PROMPT, answer=" w7", foil=" w7", subject="w13"), noise=NOISE)
    for scale, sigma in ((-1.0, None), (3.0, -0.1), (float("nan"), None), (3.0, float("inf"))):
        with pytest.raises(InvalidOption, match="a finite strength of 0 or more"):
            Noise(scale=scale, sigma=sigma)
    with pytest.raises(InvalidOption, match="number of draws must be a whole number of at least 1; it is 0"):
        Noise(draws=0)
