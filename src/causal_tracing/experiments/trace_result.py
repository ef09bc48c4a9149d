"""The result of a trace: effects, words, figures and files, all made from the same Measurements."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from causal_tracing import validation
from causal_tracing.errors import InvalidOption
from causal_tracing.report.export import export, to_dataframe
from causal_tracing.report.scalars import scalars
from causal_tracing.report.words import many_pairs, one_pair
from causal_tracing.results.circuits import Circuits, circuits
from causal_tracing.results.effects import effects, require_effect
from causal_tracing.results.lens import lens_of, mean_lens
from causal_tracing.results.means import MeanMap, NoMean, mean_map, mean_maps
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.rankings.edges import EdgeRanking, edge_ranking
from causal_tracing.results.rankings.nodes import NodeRanking, node_ranking
from causal_tracing.results.select import BESIDE, BEYOND, SiteRow, known, select, strongest
from causal_tracing.results.site_kinds import kind_of
from causal_tracing.results.storage.saved import save

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a cell of a notebook shows: HTML, and the same in words where that is not wanted."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


class Trace:
    """How much of each pair's behaviour came back (restoration) and was lost (disruption), cell by cell.

    What `trace` and its kin give, and `open_trace` opens. Effects are in the metric's unit (logits for logit_diff);
    positive means: supports the clean behaviour. Where a method takes `of` it is a kind of site ("blocks", "heads",
    "sets", "knockout", …; default: the first that was measured), `pair` an id and `metric` a metric's name (default of
    both: the first). Printed, it is its summary.

    Example:
        trace = ct.trace(model, pair, heads=True)
        trace.effects.restoration.sel(metric="logit_diff", pair="pair-0", component="mlp_out")
        trace.top(5, of="heads")
    """

    def __init__(self, measurements: Measurements) -> None:
        self.measurements = measurements
        self._effects: dict[str, xr.Dataset] = {}  # by kind, as they were asked for

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the numbers come from: model, versions, options, prompts, and the command that makes them again."""
        return self.measurements.provenance

    @property
    def effects(self) -> xr.Dataset:
        """Every effect over (metric, pair, component, layer, position), in the metric's unit, with `status`."""
        return self.of(self.measurements.kinds[0])

    @property
    def heads(self) -> xr.Dataset:
        """The same for single heads, over (metric, pair, component, layer, head, position).

        `readers` names the query heads that read a key or value head. Raises InvalidOption where none were measured.
        """
        return self.of("heads")

    @property
    def neurons(self) -> xr.Dataset:
        """The same for single neurons, over (metric, pair, component, layer, neuron, position). Raises as `heads`."""
        return self.of("neurons")

    def of(self, kind: str) -> xr.Dataset:
        """The effects of one kind of site: blocks, heads, neurons, knockout, edges, edges_by_query, circuits, …

        As `effects`, over (metric, pair, and the kind's axes), made when first asked for. Raises InvalidOption where it
        was not measured.
        """
        if kind not in self._effects:
            self._effects[kind] = effects(self.measurements, kind)
        return self._effects[kind]

    @property
    def lens(self) -> xr.Dataset:
        """The logit lens: what each run's stream would say behind each layer, over (pair, run, layer, token).

        It is read by the model's own final norm and head, for the word after each token; layer −1 is what goes into the
        first one. `top` and `top_prob` are the first choice, `answer_logit`, `answer_prob`, `answer_rank` (and of the
        foil) what becomes of them, `logit_diff` is answer minus foil, in logits. A readout, and no effect. Raises
        InvalidOption where it was not asked for (`lens=True`).
        """
        return lens_of(self.measurements)

    def lens_means(self, *, seed: int = 0) -> pd.DataFrame:
        """Means over pairs of the lens's `logit_diff` (logits) and `answer_prob`, with 95 % intervals.

        A row for each run, layer and position: a token's where all pairs have the same roles there, else a role.
        Pairs of one cluster count once, and an interval needs 8 clusters (NaN with fewer). Raises InvalidOption where
        there is no lens, or no mean.
        """
        return mean_lens(self.measurements, seed=seed).to_dataframe().reset_index()

    def top(
        self,
        count: int = 10,
        *,
        of: str | None = None,
        by: str | None = None,
        component: str | None = None,
        pair: str | None = None,
        metric: str | None = None,
    ) -> pd.DataFrame:
        """The sites with the largest effects (by size) of one pair, strongest first; cuts and zeros are left out.

        A row for each of `count` sites: where it is, what it brings back and takes away in the metric's unit, and as
        shares of the total effect (NaN where undefined). `by` is the effect that ranks them (default: restoration, or
        disruption where that alone was measured), `component` one of the kind's. Raises InvalidOption.
        """
        validation.whole("count", count, least=0)
        found = select(self.measurements, pair=pair, metric=metric, of=of)
        by = require_effect(by, found) if by else None
        if component is not None:
            component = known("component", component, found.component.values.tolist())
        rows = strongest(found, count, by=by, component=component)
        table = pd.DataFrame(rows, columns=[name for name in SiteRow.__dataclass_fields__ if name != "kind"])
        table = table.drop(columns=[name for name in (*BESIDE, *BEYOND) if name not in found])
        kind = kind_of(found)
        table = table if kind.by_query else table.drop(columns=["query", "query_token"])
        return table if kind.layered else table.drop(columns=["layer"]).rename(columns={"position": kind.column})

    def curve(
        self,
        position: int | str,
        effect: str = "restoration",
        *,
        pair: str | None = None,
        metric: str | None = None,
    ) -> xr.DataArray:
        """One pair's effect over (component, layer), in the metric's unit, at one position or role of the trace.

        NaN where it is undefined. Raises InvalidOption for a position or effect that the trace has not.
        """
        found = select(self.measurements, pair=pair, metric=metric)
        if kind_of(found).column != "position":
            raise InvalidOption(
                f"A curve is at one position, and the {kind_of(found).name} of this trace have none: use "
                f"trace.of({kind_of(found).name!r})."
            )
        position = known("position", position, found.position.values.tolist())
        return found[require_effect(effect, found)].sel(position=position)

    def summary(self, *, pair: str | None = None, metric: str | None = None, width: int | None = None) -> str:
        """What the numbers say, in words that claim no more; of several pairs, a line each unless one is named.

        Tables are no wider than `width`, as a terminal's columns; sentences are a line each. Raises InvalidOption for a
        pair or metric that the trace has not.
        """
        if pair is None and self.measurements.pairs.sizes["pair"] > 1:
            return one_pair.overview(self.measurements, metric=metric, averaged=self._averaged(metric))
        return one_pair.in_words(one_pair.read(self.measurements, pair=pair, metric=metric), width=width)

    def evidence(self, of: str | None = None, *, metric: str | None = None, seed: int = 0) -> MeanMap:
        """Means over pairs with 95 % intervals and tests, in the metric's unit. Raises InvalidOption.

        Each kind of site is a map of its own, with its own family of tests. `seed` chooses resamples and flips. With
        fewer than 8 clusters there are values and no intervals (NaN).

        Example:
            trace.evidence(of="heads").cells.restoration_low
        """
        return mean_map(self.measurements, metric=metric, seed=seed, of=of)

    def _averaged(self, metric: str | None) -> str:
        """What all pairs say together, or why there is no mean of them."""
        means = mean_maps(self.measurements, metric=metric)
        first = next(iter(means.values()))
        if isinstance(first, NoMean):
            return f"There is no mean over these pairs: {first}"
        return many_pairs.words(means, self.provenance, many_pairs.beside_the_maps(self.measurements, metric))

    def circuit(self, *, metric: str | None = None, pair: str | None = None, seed: int = 0) -> Circuits:
        """How faithful sets of nodes are, by size: the mean over pairs, or one pair. See `results.circuits.Circuits`.

        Raises InvalidOption where no circuits were measured, or no pair has the metric.

        Example:
            trace.circuit().curve[["size", "faithfulness", "low", "high"]]
        """
        return circuits(self.measurements, metric=metric, pair=pair, seed=seed)

    def nodes(self, *, effect: str | None = None, metric: str | None = None) -> NodeRanking:
        """Every head, MLP, attention or mixer by its effect at all tokens, the mean over pairs: what ranks circuits.

        `effect` is restoration, disruption or estimated. Raises InvalidOption where nodes were not patched at all
        tokens.

        Example:
            trace.nodes().stability(30)
        """
        return node_ranking(self.measurements, effect=effect, metric=metric)

    def edges(self, *, effect: str | None = None, metric: str | None = None) -> EdgeRanking:
        """Every edge by its effect at all tokens, the mean over pairs: what ranks circuits of edges.

        `effect` is restoration, disruption or estimated. Raises InvalidOption where the trace has no paths of single
        senders at all tokens.

        Example:
            ct.attribute(model, pairs, method="reception", at="all").edges().first(30)
        """
        return edge_ranking(self.measurements, effect=effect, metric=metric)

    def plot(self, kind: str = "map", **options: Any) -> "Figure":
        """A matplotlib figure: of one pair "map", "layers", "mlp_vs_attention" or a kind such as "heads".

        Of the mean over pairs "mean", "mean_curves" or a kind such as "mean_heads". The options are `effect`,
        `position`, `layer`, `pair`, `metric`, `orient` ("layers_right" or "layers_down") and `vocabulary` ("how-to",
        "rome", "pearl": labels only); `report.figures.plot.plot` says what they choose. Raises InvalidOption.

        Example:
            trace.plot("mean_heads", position="last").savefig("heads.png")
        """
        from causal_tracing.report.figures.plot import plot

        return plot(self.measurements, kind, **options)

    def to_html(self, path: str | Path | None = None) -> str:
        """The report page, one self-contained file; written to `path` if there is one. Raises MachineError."""
        from causal_tracing.report.page.page import to_html

        return to_html(self.measurements, path)

    def show(self) -> "Shown":
        """The report page in a notebook's cell, with its switches; a plain map stands in where scripts may not run.

        The page becomes part of the notebook's file, of some 100 kB and more. Elsewhere use `to_html`.
        """
        from causal_tracing.report.notebook import frame

        return Shown(html=frame(self.to_html(), self._repr_html_()), text=self.summary())

    def to_dataframe(self, of: str | None = None) -> pd.DataFrame:
        """A row for each pair, cell and effect of one kind of site, a column for each metric, in its unit.

        Of "lens" a row for each pair, run, layer and token. NaN where undefined; see `report.export.to_dataframe` for
        the columns. Raises InvalidOption.
        """
        return to_dataframe(self.measurements, of)

    def export(self, path: str | Path, of: str | None = None) -> Path:
        """Writes .csv or .parquet (the long table) or .nc (netCDF, every effect), whole or not at all.

        In CSV, text that a spreadsheet would take for a formula gets an apostrophe in front. Raises InvalidOption for
        another ending, MachineError where the disk refuses or the extra [export] is not installed.
        """
        return export(self.measurements, path, of)

    def scalars(self, *, metric: str | None = None) -> dict[str, float]:
        """At most 50 numbers by name, for who logs runs: the total effect, each component's strongest site.

        In the metric's unit (default: the first metric); see `report.scalars`. Raises InvalidOption.
        """
        return scalars(self.measurements, metric=metric)

    def tensors(
        self, effect: str = "restoration", *, of: str | None = None, pair: str | None = None, metric: str | None = None
    ) -> "dict[str, torch.Tensor]":
        """One effect of one pair as a tensor a component, in the metric's unit: [layer, position], NaN where undefined.

        Of heads [layer, head, position], of neurons [layer, neuron, position]. Raises InvalidOption.

        Example:
            trace.tensors()["attn_out"].argmax()
        """
        import torch

        found = select(self.measurements, pair=pair, metric=metric, of=of)
        axes = [axis for axis in kind_of(found).axes if axis != "component"]
        values = found[require_effect(effect, found)].transpose("component", *axes)
        return {str(name): torch.tensor(values.sel(component=name).values) for name in values.component.values}

    def to_hub(self, folder: str | Path) -> Path:
        """Writes a new folder that a data hub shows: tables (Parquet), pairs, record, page, and a card. No upload.

        Raises InvalidResults where the folder is there already, MachineError (the disk; the extra [export]).
        """
        from causal_tracing.report.hub_card import write_hub_card

        return write_hub_card(self.measurements, folder, page=self.to_html())

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes a folder that `open_trace` reads back without loss, whole or not at all; gives its path.

        Raises InvalidResults where it is there already (`overwrite` replaces a saved trace, and nothing else),
        MachineError where the disk refuses.
        """
        return save(self.measurements, folder, overwrite=overwrite)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from causal_tracing.report.notebook import notebook_html

        return notebook_html(self.measurements)
