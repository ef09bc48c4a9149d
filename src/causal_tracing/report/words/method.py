"""What was done, in words: how noise corrupts, what is written at a site, what a window holds, what is severed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.interventions.write import ABLATIONS
from causal_tracing.prompts.answers import on_one_line
from causal_tracing.report.labels import number
from causal_tracing.report.words.attention import attention_not_shown, attention_read
from causal_tracing.report.words.circuits import circuit_not_shown, circuit_read, not_of_one
from causal_tracing.report.words.lens import lens_not_shown, lens_read
from causal_tracing.report.words.mixtures import mixture_not_shown, mixture_read
from causal_tracing.report.words.paths import path_beside, paths_not_shown, paths_read
from causal_tracing.report.words.senders import senders_not_shown, senders_read
from causal_tracing.report.words.sets import joint_not_shown, joint_read
from causal_tracing.results.arms import SEVERED as SEVERED_ARMS
from causal_tracing.results.arms import SUMS
from causal_tracing.results.effects import WINDOW
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.select import SiteRow
from causal_tracing.results.site_kinds import KINDS

WITH_NOISE = "the same with noise on its subject"  # what a prompt is compared with
ITSELF = "the same with keys hidden"


@dataclass(frozen=True, slots=True)
class Side:
    """A prompt, and what follows it (a set spelled as a JSON list); nothing where it has no answer of its own."""

    prompt: str
    follows: str = ""

    def __str__(self) -> str:
        return f"{self.prompt} →{on_one_line(self.follows)}" if self.follows else self.prompt


HOW_TO_READ = (
    "Restoration: the clean activation is put into the corrupt run at one site; shown is how much of the behaviour "
    "comes back. Disruption: the corrupt activation is put into the clean run; shown is how much is lost. Positive "
    "always means: supports the clean behaviour.",
    "Interaction = disruption - restoration. Above 0: the site needs partners (AND-like). Below 0: others can do "
    "without it (OR-like). Of negative effects the other way round.",
    "A cut is a site through which the whole difference must pass: its effect is the total effect by construction, "
    "so it is marked and never ranked. A structural zero is a site that cannot matter: nothing differs there yet, or "
    "nothing reads it any more.",
)
NOT_SHOWN = (
    "An effect says that this site carries the difference between these two prompts. It does not say that the site "
    "stores a fact, and where tracing peaks does not predict where editing the weights works.",
    "The corrupt prompt decides what is measured: what both prompts share is invisible.",
    "A site with no effect may be backed up by others, and effects of different sites do not add up to the total.",
)
HOW_TO_READ_WITH_NOISE = (
    "Restoration: the clean activation is put into the noised run at one site; shown is how much of the behaviour "
    "comes back, as the mean over draws. Positive always means: supports the clean behaviour. Disruption by noise is "
    "not defined, and not measured.",
    HOW_TO_READ[-1],
)
NOT_SHOWN_WITH_NOISE = (
    "An effect says that this site carries what the noise takes away. It does not say that the site stores a fact, "
    "and where tracing peaks does not predict where editing the weights works.",
    "The noise decides what is measured: what it leaves intact is invisible, and it brings the model into states that "
    "no text does. A corrupt prompt, or other noise, can rank sites otherwise.",
    NOT_SHOWN[-1],
)
HOW_TO_READ_ABLATED = (
    "Disruption: {written} at one site of the clean run; shown is how much of the behaviour is lost. Positive always "
    "means: supports the clean behaviour. Shares are of the total effect between the two prompts: an ablation can "
    "take away more than that.",
    HOW_TO_READ[-1],
)
NOT_SHOWN_ABLATED = (
    "An effect says that the clean run does worse (or better) without what is at this site, not that the site carries "
    "the difference between the prompts, nor that it stores a fact.",
    "What is written decides what is measured: zeros, means and activations of other texts can bring the model into "
    "states that no text does, and each of them can rank sites otherwise.",
    NOT_SHOWN[-1],
)
NOT_SHOWN_HIDDEN = (
    "An effect says that the clean run does worse (or better) where a query cannot see these keys, not that they carry "
    "the difference between two prompts, nor that a fact is stored there.",
    "Keys that can be hidden without a loss may be backed up by others, and effects of different keys and layers do "
    "not add up.",
)
OF_PAIRS = (
    "An effect says that a site carries the difference between the two prompts of a pair. It does not say that the "
    "site stores a fact, and where tracing peaks does not predict where editing the weights works."
)
NOT_SHOWN_BY = {
    "patched": NOT_SHOWN,
    "noised": NOT_SHOWN_WITH_NOISE,
    "ablated": NOT_SHOWN_ABLATED,
    "hidden": NOT_SHOWN_HIDDEN,
}
WINDOWED = "A window is several layers patched together, named by the layer it is centred on{sums}. {edges}"
SUMMED = "; beside its joint effect stands the sum of what each layer does alone"
EDGES = "Where there is no whole window, nothing is measured."
EDGES_ROME = "At the edges of the model windows are cut, so they are narrower there."
USUAL = {  # the roles that carry most in each third of the layers, in the usual picture of factual recall
    "early": ("subject_first", "subject_middle", "subject_last"),
    "middle": ("subject_last",),
    "late": ("last",),
}
PARTS = {"attn_out": "attention", "mlp_out": "MLPs"}
SEVERED = (
    "A severed effect is what a restored state still brings back while the outputs of all later {parts} at its token "
    "are held as in the corrupt run."
)


def thirds(layers: Sequence[int], record: Mapping[str, Any]) -> dict[str, list[int]]:
    """Which of these layers are early, middle and late in the model, and not among themselves; empty where unknown."""
    depth = record.get("layers")
    if not isinstance(depth, int) or len(layers) < 3:
        return {}
    parts = zip(("early", "middle", "late"), np.array_split(np.arange(depth), 3), strict=True)
    found = {name: [layer for layer in layers if layer in part] for name, part in parts}
    return {name: some for name, some in found.items() if some}


def seen_beside_usual(third: str, role: str, more: str = "") -> str:
    """The strongest token of a third of the layers, and whether it is one of the usual picture."""
    fits = "as usual" if role in USUAL[third] else "not as usual"
    return f"{third} layers: {role.replace('_', ' ')} token ({fits}{more})"


def usual_sentence(seen: Sequence[str], layers: Sequence[int], record: Mapping[str, Any]) -> str:
    """The usual picture of factual recall, and what was seen in each third of the model."""
    over = "over each third" if len(layers) == record["layers"] else "over what was traced of each third of the model"
    return (
        "The usual picture of factual recall is early layers at the subject, middle layers at its last token, late "
        f"layers at the last token. Here the strongest tokens are, on average {over}, {'; '.join(seen)}."
    )


def how_to_read(measurements: Measurements) -> tuple[str, ...]:
    """What the numbers of this trace are."""
    record = measurements.provenance
    measured = {str(name) for each in measurements.maps.values() for name in each.variables}
    texts: list[str] = list(HOW_TO_READ_WITH_NOISE if record.get("noise") else HOW_TO_READ)
    attending = attention_read(measurements)
    done = what_is_done(measurements.kinds, record)
    # Where nothing of another run is written at a site, restoration and disruption by it need no words.
    if done in ("hidden", "kept"):
        texts = [HOW_TO_READ[-1]] if done == "hidden" else []
    elif ablates(measurements):
        texts = [text.format(written=_written(measurements)) for text in HOW_TO_READ_ABLATED]
    elif measurements.write["kind"] == "donor":
        texts += mixture_read(measurements)
    texts += [*joint_read(measurements), *senders_read(measurements), *attending]
    if WINDOW[0] in measured:
        sums = SUMMED if {arm.raw for arm in SUMS.values()} & measured else ""
        cut = _preset(measurements) == "rome" or record.get("options", {}).get("knockout_cut")
        edges = EDGES_ROME if cut else EDGES
        texts.append(WINDOWED.format(sums=sums, edges=edges))
    texts += [*circuit_read(measurements), *paths_read(measurements)]
    parts = [name for part, name in PARTS.items() if SEVERED_ARMS[part].raw in measured]
    if parts:
        texts.append(SEVERED.format(parts=", or ".join(parts)))
    texts += lens_read(measurements)
    return tuple(texts)


def _preset(measurements: Measurements) -> str | None:
    return measurements.provenance.get("options", {}).get("preset")


def what_is_done(kinds: Iterable[str], record: Mapping[str, Any]) -> str:
    """What is done to measure an effect: sets are "kept", keys "hidden", a site is "ablated", "noised" or "patched"."""
    if all(KINDS[name].large for name in kinds):
        return "kept"
    if not any(KINDS[name].patches for name in kinds):
        return "hidden"
    if record.get("options", {}).get("write", {}).get("kind") in ABLATIONS:
        return "ablated"
    return "noised" if record.get("noise") else "patched"


def says_of_pairs(kinds: Iterable[str], record: Mapping[str, Any]) -> str:
    """What an effect of many pairs says, and does not say."""
    done = what_is_done(kinds, record)
    return OF_PAIRS if done == "patched" else _not_shown_by(done, record)[0]


def not_shown(measurements: Measurements) -> tuple[str, ...]:
    """What no trace of this kind shows."""
    record = measurements.provenance
    shown = (
        *_not_shown_by(what_is_done(measurements.kinds, record), record),
        *joint_not_shown(measurements),
        *senders_not_shown(measurements),
        *attention_not_shown(measurements),
        *paths_not_shown(measurements),
        *circuit_not_shown(measurements),
        *lens_not_shown(measurements),
        *mixture_not_shown(measurements),
    )
    alone = record.get("noise") or not any(measurements.pairs.corrupt_prompt.values)
    few = f"One {'prompt' if alone else 'pair of prompts'} is an anecdote: nothing here says how other prompts behave, "
    return (f"{few}and there is no interval.", *shown)


def _not_shown_by(done: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    """What effects do not show by what was done."""
    return (not_of_one(record),) if done == "kept" else NOT_SHOWN_BY[done]


def sides(measurements: Measurements, data: xr.Dataset) -> tuple[Side, Side]:
    """What was asked of one pair: its clean prompt, and what that is compared with."""
    clean, foil = Side(data.clean_prompt.item(), data.answer.item()), data.foil.item()
    if measurements.provenance.get("noise"):
        return clean, Side(WITH_NOISE + (f" (foil{on_one_line(foil)})" if foil else ""))
    if not data.corrupt_prompt.item():
        return clean, Side(ITSELF + (f" (foil{on_one_line(foil)})" if foil else ""))
    return clean, Side(data.corrupt_prompt.item(), foil)


def headline(asked: Iterable[Side]) -> str:
    """What was asked, on one line."""
    return "   against   ".join(map(str, asked))


def noise_sentences(measurements: Measurements, found: xr.Dataset) -> Iterator[str]:
    """What corrupted one pair's prompt, and how far the draws are apart."""
    noise = measurements.provenance.get("noise")
    if not noise:
        return
    pair = measurements.pairs.pair.values.tolist().index(found.pair.item())
    sigma, positions = noise["sigmas"][pair], noise["positions"][pair]
    tokens = ", ".join(repr(str(found.clean_token.values[position])) for position in positions)
    strength = f"standard deviation {number(noise['scale'] * sigma)}"
    if noise["sigma"] is None:
        strength += f" ({noise['scale']:g} σ, σ = {number(sigma)})"
    said = f"The corrupt run is the same prompt with Gaussian noise of {strength} added to the embeddings of {tokens}"
    if noise["draws"] == 1:
        yield f"{said}. One draw: nothing is known about others."
        return
    yield (
        f"{said}: means of {noise['draws']} draws, the same for every cell. The total effect varies by "
        f"{number(found.total_effect_deviation.item())} {found.unit.item()} over draws (standard deviation)."
    )


CONTROLS = {
    "random-weights": "the model's parameters are in random order, so that nothing here is about the model",
    "shuffled-pairs": "each pair was asked for another pair's answer and foil, so that nothing here is about its own",
}


def control_sentences(record: Mapping[str, Any]) -> Iterator[str]:
    """That this is a control, where it is one."""
    control = record.get("options", {}).get("control")
    if control:
        yield f"This is a control: {CONTROLS[control]}. What it shows, the method shows by itself."


def device_sentences(record: Mapping[str, Any]) -> Iterator[str]:
    """What the kinds of device that were computed on mean for the last digits, where they mean anything."""
    devices = record.get("devices", ())
    short = [device["name"] for device in devices if device["short_products"]]
    if len(devices) > 1:
        rounding = None if short else record.get("rounding")
        how = "up to rounding" if rounding is None else f"to about {rounding:.0e} of the largest logit"
        named = "; ".join(dict.fromkeys(device["name"] for device in devices))
        yield f"These numbers were computed on several kinds of device: {named}. They agree {how} only."
    if short:
        yield (
            f"Products of float32 numbers were made with fewer bits (TF32 or bfloat16) on {'; '.join(short)}: do not "
            'trust more than three digits. torch.set_float32_matmul_precision("highest") makes whole ones.'
        )


def pairing_warnings(data: xr.Dataset) -> Iterator[str]:
    """What one pair's tokens being paired otherwise than one by one means for its map."""
    if "corrupt_position" not in data:
        return
    length = int(data.clean_length)
    there = data.corrupt_position.values[:length]
    alone = [f"{n} ({data.clean_token.values[n]})" for n in range(length) if there[n] < 0]
    left = int(data.corrupt_length) - (length - len(alone))
    if alone or left:
        named = f": {', '.join(alone)}" if alone else ""
        yield (
            f"{len(alone)} of {length} clean tokens and {left} of {int(data.corrupt_length)} corrupt ones are paired "
            f"with none, and not patched{named}."
        )
    moved = int((there[there >= 0] != np.flatnonzero(there >= 0)).sum())
    if moved:
        yield (
            f"{moved} tokens stand at another position in the other prompt: their activations carry the old position "
            "with them, so that effects there mix content and position."
        )


def ablates(measurements: Measurements) -> bool:
    """Whether what is at a site is taken away, and nothing of the other prompt put there."""
    return measurements.write["kind"] in ABLATIONS


def _written(measurements: Measurements) -> str:
    """What an ablation writes."""
    write = measurements.write
    among = f"the reference prompts ({len(write.get('prompts', ()))} in all) that have as many tokens"
    return {
        "zero": "zeros are written",
        "mean": f"the mean activation of {among} is written",
        "resample": f"the activation of one of {among} is written, at most {_draws(write)} of them in turn,",
    }[write["kind"]]


def _draws(write: Mapping[str, Any]) -> int:
    # They are drawn without repetition.
    return min(write.get("draws", 0), len(write.get("prompts", ())))


def write_sentences(measurements: Measurements) -> Iterator[str]:
    """What is written at a site, where it is not the other run's activation, whole; and what is there already."""
    write, given = measurements.write, measurements.provenance.get("options", {}).get("given")
    if given:
        yield (
            f"All of this is in an edited world: {', '.join(given)} already hold the other run's activations, in the "
            "unedited runs and in every cell. Sites among them have no effect of their own here."
        )
    part = f", and mixed with what is there: {write['alpha']:g} of it is new" if write["alpha"] != 1 else ""
    if all(KINDS[name].large for name in measurements.kinds):
        return  # said of circuits: what is written is all that is not in them
    if ablates(measurements):
        yield f"An ablation: {_written(measurements)} at each site of the clean run{part}."
    elif write["kind"] == "given":
        yield f"Not the other run's activation but a given tensor is written at each site{part}."
    elif write["kind"] == "subspace":
        yield f"Only the part of the other run's activation inside a given subspace is written at each site{part}."
    elif part:
        yield f"The other run's activation is written at each site{part}."


def convention_sentences(measurements: Measurements) -> Iterator[str]:
    """Whose conventions were followed, where they are not ours."""
    if _preset(measurements) != "rome":
        return
    windows = " and ".join(measurements.provenance["options"]["window"])
    cut = f", windows of 10 layers of {windows} from 5 before to 4 behind, cut at the model's edges" if windows else ""
    yield (
        "By the conventions of ROME's code (Meng et al. 2022): σ over all subjects tokenised alone, one set of draws "
        f"(numpy's RandomState(1)) for all prompts, probability as the metric{cut}."
    )


def beside(row: SiteRow, unit: str) -> str:
    """What belongs to a site's effect: its window and the sum of single layers, the spread, what severing leaves."""
    parts = []
    total = row.restoration_sum if row.restoration is not None else row.disruption_sum
    if row.window:
        alone = "" if total is None else f"; one at a time they add up to {number(total)} {unit}"
        parts.append(f"It is {row.window} patched together{alone}")
    deviation = row.disruption_deviation if row.restoration_deviation is None else row.restoration_deviation
    if deviation is not None:
        parts.append(f"Over draws it varies by {number(deviation)} {unit} (standard deviation)")
    for name, left in ((PARTS["attn_out"], row.severed_attn_out), (PARTS["mlp_out"], row.severed_mlp_out)):
        if left is not None:
            parts.append(f"With the later {name} at its token frozen, it brings back {number(left)} {unit}")
    parts += path_beside(row, unit)
    return "".join(f" {part}." for part in parts)
