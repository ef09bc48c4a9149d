"""The ledger of a patch: the direct path of what was patched, and which writers compensated for it, line by line."""

from collections.abc import Sequence

import pandas as pd

from causal_tracing import validation
from causal_tracing.engine.choose import open_backend
from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.sites import FINAL_SCALE
from causal_tracing.models.at_rest import made_on_cpu
from causal_tracing.models.model import Model, require_model
from causal_tracing.patching.ledger import check_ledger, lines, writers_of
from causal_tracing.patching.named_sites import check_named_sites, sites_on
from causal_tracing.prompts.pairs import Pair, as_pairs, named, tokenize_pairs
from causal_tracing.results.arms import DIRECTIONS


@made_on_cpu()
def ledger(
    model: Model, pairs: Pair | Sequence[Pair], sites: Sequence[str], *, direction: str = "disruption"
) -> pd.DataFrame:
    """Which writer to the residual stream changed the answer by how much, when sites are patched together.

    A row a pair and line, with the columns pair, component, layer (NaN where a line is of no layer) and change, in
    logits of answer minus foil, counted as the effect is: positive is what the patch brings back (restoration) or takes
    away (disruption). The lines are the embedding, attn_out and mlp_out of each layer with the final norm's scale held
    as in the unedited run, "written" (into the stream itself, where a site is of it), "final_norm" (what the live norm
    changes) and "rest" (what is not linear: soft-caps). A pair's lines add up to its effect, to rounding; the line of
    the part that was patched is its direct path, and negative lines beside it compensated for it.

    model: from `load`.
    pairs: a Pair or several, each with a corrupt prompt, and one answer and one foil of one token.
    sites: sites by name, such as ["z 23.4 @ last"]; all are patched together.
    direction: "disruption" (corrupt activations go into the clean run) or "restoration" (the other way round).

    Raises InputError, ModelError (layers that do more than add; a final norm that is not known).

    Example:
        found = ct.ledger(model, pair, ["z 23.4 @ last", "z 23.5 @ last"])
        found.sort_values("change").head()
    """
    require_model(model)
    check_named_sites(sites, "sites=")
    if not sites:
        raise InvalidOption('sites= is empty, and a ledger is of a patch: name such as "z 23.4 @ last".')
    validation.one_of("direction", direction, tuple(DIRECTIONS))
    tokens = tokenize_pairs(named(as_pairs(pairs)), model.tokenizer, align="strict", noise=False)
    for pair in tokens:
        check_ledger(pair)
    patched = sites_on(model, sites, tokens, "sites=")
    written = (name for name, _ in writers_of(model))
    needed = dict.fromkeys([*(site.component for site in patched), *written, "resid_pre", "resid_post", FINAL_SCALE])
    backend = open_backend(model, [*needed])
    rows = [
        (pair.id, line.component, line.layer, line.change)
        for pair in tokens
        for line in lines(model, backend, pair, patched, restores=DIRECTIONS[direction].restores)
    ]
    found = pd.DataFrame(rows, columns=["pair", "component", "layer", "change"]).astype({"layer": "float64"})
    found.attrs["unit"] = "logits"
    return found
