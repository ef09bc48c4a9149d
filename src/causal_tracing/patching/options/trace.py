"""The options of a trace, of a run of many pairs, and of estimates: every one declared once.

Checks of single values are made here; what depends on the model, the pairs or other options is checked where the job is
planned (`patching/job.py`). Nothing heavy is loaded: every `--help` is made of this.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from causal_tracing import validation
from causal_tracing.interventions.noise import Noise
from causal_tracing.interventions.write import KINDS, Write, checked_write
from causal_tracing.patching.metrics.metric import Metric, check_metrics, kept
from causal_tracing.patching.named_sites import check_named_sites
from causal_tracing.patching.options import texts
from causal_tracing.patching.options.checks import (
    FINAL_NORMS,
    asked_paths,
    by_layer,
    check_budget,
    check_components,
    check_direct,
    check_directions,
    check_heads,
    check_measured,
    check_noise,
    check_progress,
    check_severed,
    check_shard,
    check_workers,
    one_of,
)
from causal_tracing.patching.options.choices import (
    CONTROLS,
    ENGINES,
    KEEP,
    PRESETS,
    RANKED,
)
from causal_tracing.patching.options.declare import CHANGES, ENGINE, MANY, OUTPUT, PATCHED, check_values, option, record
from causal_tracing.patching.options.nodes import NodeOptions
from causal_tracing.patching.options.site_texts import SITES
from causal_tracing.patching.options.together import check_together
from causal_tracing.patching.windows import Window
from causal_tracing.prompts.alignment import ALIGNMENTS
from causal_tracing.prompts.tokens import Column

Progress = Callable[[int, int], None]  # is told how much is done, and of how much

_whole = partial(partial, validation.whole)
MOST_CHECKS = 100_000  # cells that are run again: more is a slip of the finger
_check_columns = partial(validation.columns, "positions=")
_PROGRESS = (
    "True: a bar in a notebook or a terminal, elsewhere lines on stderr; work that ends at once shows nothing. False: "
    "nothing. A callable is called with (done, total)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(NodeOptions):
    """The options of `trace` and `estimate`. Raises InvalidOption for a value that cannot be meant.

    In the order in which a command line is written that makes a result again.
    """

    components: Sequence[str] | None = option(
        None,
        help="Which blocks are patched: of resid_pre, attn_out, resid_mid, mlp_out, mixer_out, resid_post (default: "
        "resid_post, attn_out, mlp_out, or what the model offers in their place); of a mixture router, experts_in.",
        group=PATCHED,
        text=texts.COMPONENTS,
        check=check_components,
        always=True,
    )
    layers: Sequence[int] | None = option(
        None,
        help="Which layers, from 0 (default: all).",
        group=PATCHED,
        text=texts.LAYERS,
        always=True,
    )
    directions: Sequence[str] | None = option(
        None,
        help="Of restoration, disruption (default: both; with noise restoration, with an ablation disruption).",
        group=PATCHED,
        text=texts.NAMES,
        check=check_directions,
        always=True,
    )
    positions: str | Sequence[Column] = option(
        "each",
        help='"each" token, "together" (all at once: one world a layer), or token positions and roles; a role with '
        'several tokens is their mean, and with "together" behind it ("subject together") all of them at once.',
        group=PATCHED,
        text=texts.POSITIONS,
        check=_check_columns,
        always=True,
    )
    align: str = option(
        "strict",
        help="How tokens are paired: strict (one by one), suffix (same end), spans (equal roles).",
        group=PATCHED,
        text=texts.WORD,
        check=partial(validation.one_of, "alignment", valid=ALIGNMENTS),
        names=ALIGNMENTS,
    )
    control: str | None = option(
        None,
        help="The same where there is nothing to find: random-weights (a copy of the model with each parameter's "
        "numbers in random order) or shuffled-pairs (each pair with another one's answer and foil).",
        group=CHANGES,
        text=texts.WORD,
        check=one_of("control", CONTROLS),
        names=CONTROLS,
    )
    preset: str | None = option(
        None,
        help='"rome": noise, windows and metric as in ROME\'s code.',
        group=CHANGES,
        text=texts.WORD,
        check=one_of("preset", PRESETS),
        names=PRESETS,
    )
    noise: Noise | None = option(
        None,
        help="Corrupt the subject of the clean prompt by noise, without a corrupt prompt.",
        python="A Noise, such as Noise(scale=3.0, draws=10).",
        group=CHANGES,
        text=texts.NOISE,
        check=check_noise,
        kept=lambda noise: noise and asdict(noise),
        unless="preset",
    )
    given: Sequence[str] = option(
        (),
        help="Sites that hold the other run's activations already, in the unedited runs and in every cell: a sweep in "
        'an edited world. By name, such as "z 23.4 @ last" or "resid_post 0-9 @ subject".',
        group=CHANGES,
        text=SITES,
        check=check_named_sites,
        beside="given",
    )
    window: Window = option(
        1,
        help="How many layers are patched together.",
        python="A number, or a mapping from components to numbers.",
        group=PATCHED,
        text=texts.WINDOW,
        unless="preset",
    )
    sever: Sequence[str] = option(
        (),
        help="Freeze what comes behind a restored state: of mlp_out, attn_out.",
        group=PATCHED,
        text=texts.NAMES,
        check=check_severed,
    )
    direct: bool | Sequence[str] = option(
        False,
        help="Paths to the logits too: what reaches them while later attention at the token that is read is held as in "
        "the unedited run; mlps_frozen (later MLPs too: through the residual stream alone), mlps_live (through MLPs as "
        "well).",
        python="True: both.",
        group=PATCHED,
        text=texts.LISTED,
        check=check_direct,
        kept=asked_paths,
        beside="direct",
    )
    direct_norm: str = option(
        "live",
        help="The final norm of such paths: live, or frozen (it divides by what it divides by in the unedited run).",
        group=PATCHED,
        text=texts.WORD,
        check=partial(validation.one_of, "final norm", valid=FINAL_NORMS),
        names=FINAL_NORMS,
        beside="direct",
    )
    window_sums: bool = option(
        True,
        help="Beside a window, the sum of what each of its layers does alone.",
        group=PATCHED,
        text=texts.SWITCH,
    )
    write: str | Write = option(
        "donor",
        help="What a patched site gets: donor (the other run's activation), zero, mean, resample, given, subspace. "
        "Zeros, means and resampled activations go into the clean run: disruption alone.",
        python="A kind, or a Write.",
        group=CHANGES,
        text=texts.WRITE,
        check=checked_write,
        names=KINDS,
        kept=lambda write: checked_write(write).to_dict(),
    )
    heads: bool | Sequence[str] = option(
        False,
        help="Single heads too, by any of q, k, v, pattern, z (their outputs).",
        python="True: z.",
        group=PATCHED,
        text=texts.HEADS,
        check=check_heads,
        kept=lambda heads: ["z"] if heads is True else heads,
        beside="heads",
    )
    head_positions: str | Sequence[Column] = option(
        "each",
        help="Where heads are patched; as positions.",
        group=PATCHED,
        text=texts.POSITIONS,
        check=_check_columns,
        always=True,
        beside="heads",
    )
    neurons: bool | Mapping[int, Sequence[int]] = option(
        False,
        help="Single neurons too: all of the layers, or those that are named, layer by layer.",
        python="True, or a mapping from layers to neurons, such as {5: [], 20: [14, 1035]}: none means all of a layer.",
        group=PATCHED,
        text=texts.NEURONS,
        check=by_layer("neurons"),
        beside="neurons",
    )
    neuron_positions: str | Sequence[Column] = option(
        ("last",),
        help="Where neurons are patched; as positions.",
        group=PATCHED,
        text=texts.POSITIONS,
        check=_check_columns,
        always=True,
        beside="neurons",
    )
    experts: bool | Mapping[int, Sequence[int]] = option(
        False,
        help="Single experts of a mixture too, by what each adds: all of the layers, or those that are named, layer by "
        "layer.",
        python="True, or a mapping from layers to experts, such as {5: [], 20: [3, 17]}: none means all of a layer.",
        group=PATCHED,
        text=texts.EXPERTS,
        check=by_layer("experts"),
        beside="experts",
    )
    expert_positions: str | Sequence[Column] = option(
        ("last",),
        help="Where experts are patched; as positions.",
        group=PATCHED,
        text=texts.POSITIONS,
        check=_check_columns,
        always=True,
        beside="experts",
    )
    metric: str | Metric | Sequence[str | Metric] | None = option(
        None,
        help="Which is shown first: logit_diff (default), log_prob (default without a foil), logit, "
        "prob, prob_diff, neg_kl, neg_rank; or several, the first one shown.",
        python="A name, a ct.Metric of your own, or a list of such.",
        group=PATCHED,
        text=texts.METRIC,
        check=partial(check_metrics, valid=RANKED),
        names=RANKED,
        kept=kept,
        unless="preset",
    )
    metrics: str | Sequence[str] | None = option(
        None,
        help="Which metrics are measured beside those that are shown: all, or names (default: of layers, sets and "
        "knockouts all; of heads, neurons, experts, pairs and edges none, which spares most of the vocabulary).",
        group=PATCHED,
        text=texts.MEASURED,
        check=check_measured,
        names=("all", *RANKED),
    )
    lens: bool = option(
        False,
        help="The logit lens beside the map: what the stream behind each layer would say at each token of both "
        "prompts, read by the model's own final norm and head. A readout, and no effect.",
        group=PATCHED,
        text=texts.SWITCH,
        beside="lens",
    )
    budget: int | None = option(
        None,
        help="Memory that a batch may take (default: by what is free).",
        python="In bytes.",
        group=ENGINE,
        text=texts.SIZE,
        check=check_budget,
    )
    engine: str = option(
        "auto",
        help="auto, packed or replay.",
        group=ENGINE,
        text=texts.WORD,
        check=partial(validation.one_of, "engine", valid=ENGINES),
        names=ENGINES,
    )
    seed: int = option(
        0,
        help="Chooses the cells that are checked again, and what a control puts where.",
        group=ENGINE,
        text=texts.NUMBER,
        check=_whole("seed=", least=0),
        always=True,
    )
    spot_checks: int = option(
        8,
        help="How many random cells of each map are run again on whole forwards; 0 turns it off.",
        group=ENGINE,
        text=texts.NUMBER,
        check=_whole("spot_checks= (cells)", least=0, most=MOST_CHECKS),
        always=True,
    )
    progress: bool | Progress = option(True, help=_PROGRESS, group=OUTPUT, check=check_progress, recorded=False)

    def __post_init__(self) -> None:
        check_values(self)
        check_together(self)

    def to_dict(self) -> dict[str, Any]:
        """What is kept of them with a result, as JSON holds it; heads and their like where they are asked for."""
        return record(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(Options):
    """The options of `run`: those of a trace, and which of the pairs are traced."""

    # Neither this nor what follows is recorded with a result's options: no pair's numbers depend on it.
    keep: str = option(
        "all",
        help="Of a file's pairs: all, or what the clean run must get right: first_choice (its most likely token is the "
        "answer's first), preferred (the answer is likelier than the foil, all their tokens counted).",
        group=MANY,
        text=texts.WORD,
        check=partial(validation.one_of, "keep", valid=KEEP),
        names=KEEP,
        recorded=False,
    )
    shard: Sequence[int] = option(
        (0, 1),
        help="The i-th of n parts, from 0, for a folder of its own: every n-th chunk of the pairs.",
        group=MANY,
        text=texts.SHARD,
        check=check_shard,
        recorded=False,
    )
    workers: int | str | None = option(
        None,
        help="How many processes of this machine work on it; ray, or ray:N, for Ray's actors on any number of machines "
        "(default: this process alone).",
        group=MANY,
        text=texts.WORKERS,
        check=check_workers,
        recorded=False,
    )
    retry_failed: bool = option(
        False,
        help="Measure the pairs that failed once more.",
        group=MANY,
        text=texts.SWITCH,
        recorded=False,
    )
