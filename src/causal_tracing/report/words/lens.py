"""The logit lens in words: from which layer on a run's stream, read out, says what the run says in the end."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from causal_tracing.results.lens import EMBEDDING, at_the_end, layer_from, mean_at_the_end
from causal_tracing.results.means import NoMean
from causal_tracing.results.measurements import Measurements

READ = (
    "The logit lens (nostalgebraist 2020): the stream behind a layer, read at a token by the model's own final norm "
    "and head, as if no layer came behind it. Behind the last layer it is what the model says."
)
NOT_SHOWN = (
    "The logit lens is a readout, and no effect: nothing is patched. Norm and head were made for the last layer's "
    "stream: what they do not find in an earlier one may be there in another form, and what they find need not be used."
)
SIDES = (("clean", "answer", "foil", 1), ("corrupt", "foil", "answer", -1))


def lens_read(measurements: Measurements) -> tuple[str, ...]:
    """How the lens is read, where there is one."""
    return () if measurements.lens is None else (READ,)


def lens_not_shown(measurements: Measurements) -> tuple[str, ...]:
    """What the lens does not show."""
    return () if measurements.lens is None else (NOT_SHOWN,)


def lens_sentences(measurements: Measurements, pair: str) -> Iterator[str]:
    """Of one pair, at the token that is read: since when each run's text is the first choice, and ahead of the other's.

    Of answers that are sets or have several tokens, what is said is of the first tokens.
    """
    if measurements.lens is None:
        return
    last, said = at_the_end(measurements, pair), []
    for run, text, other, sign in SIDES:
        here = last.sel(run=run)
        # Without a foil there is nothing that the corrupt run should say.
        if np.isnan(here[f"{text}_rank"].values).all():
            continue
        first = _since(here, here[f"{text}_rank"].values == 0)
        parts = [f"the {text} is {f'the first choice {first}' if first else 'not the first choice in the end'}"]
        if np.isfinite(here.logit_diff.values).all():
            parts.append(_ahead(here, sign, other))
        said.append(f"in the {run} run {' and '.join(parts)}")
    if said:
        yield f"Logit lens at the last token (a readout, no effect): {'; '.join(said)}."


def mean_lens_sentences(measurements: Measurements) -> Iterator[str]:
    """The same of the mean over pairs, by the difference of the two logits; nothing where there is none."""
    if measurements.lens is None:
        return
    try:
        last = mean_at_the_end(measurements)
    except NoMean:
        return
    said = []
    for run, text, other, sign in SIDES:
        here = last.sel(run=run)
        if np.isfinite(here.logit_diff.values).all():
            said.append(f"in the {run} run the {text} is {_ahead(here, sign, other)}")
    if said:
        count = measurements.pairs.sizes["pair"]
        yield (
            f"Logit lens at the last token, mean logit difference of {count} pairs (a readout, no effect): "
            f"{'; '.join(said)}."
        )


def _ahead(here: xr.Dataset, sign: int, other: str) -> str:
    ahead = _since(here, sign * here.logit_diff.values > 0)
    return f"ahead of the {other} {ahead}" if ahead else f"not ahead of the {other} in the end"


def _since(here: xr.Dataset, holds: np.ndarray) -> str:
    """From where on something holds to the end; "" where it does not in the end."""
    layers = here.layer.values.tolist()
    layer = layer_from(layers, holds.tolist())
    if layer is None:
        return ""
    if layer == EMBEDDING:
        return "from the embedding on"
    return "behind the last layer alone" if layer == layers[-1] else f"from layer {layer} on"
