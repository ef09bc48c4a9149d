"""Options against each other: what one of them makes of the others, and which cannot be asked for together."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from causal_tracing.errors import InvalidOption
from causal_tracing.interventions.noise import Noise
from causal_tracing.interventions.sites import WHOLE
from causal_tracing.interventions.write import ABLATIONS, TENSORED, Write, checked_write
from causal_tracing.patching.options.choices import BLOCKS
from causal_tracing.patching.options.declare import check_beside
from causal_tracing.patching.windows import check_widths
from causal_tracing.results.arms import DIRECTIONS

if TYPE_CHECKING:
    from causal_tracing.patching.options.trace import Options

ROME_NOISE = Noise(scale=3.0, draws=10, seed=1, rome=True)
ROME_WINDOWS = {"attn_out": 10, "mlp_out": 10}
# What can be asked for in place of components; and what else needs two runs that are compared.
OTHERS = (
    *("heads", "neurons", "experts", "sets", "interactions"),
    *("senders", "knockout", "edges", "circuit"),
)
COMPARE = ("noise", "preset", "given", "lens")


def check_together(options: "Options") -> None:
    """Raises InvalidOption for options that contradict each other."""
    check_beside(options)
    _check_preset(options)
    _check_align(options)
    _check_something(options)
    _check_edges(options)
    _check_direct(options)
    _check_paths(options)
    _check_given(options)
    _check_circuit(options)
    directions_of(options)  # for its refusal
    if _asked(options):
        check_widths(_asked(options), options.window)


def preset_windows(options: "Options") -> Mapping[str, int]:
    """The windows of ROME's code, of the components that are traced."""
    return {name: width for name, width in ROME_WINDOWS.items() if name in _asked(options)}


def _asked(options: "Options") -> Sequence[str]:
    """The components that may be traced: what a model offers of the usual ones is not known yet."""
    return (*BLOCKS, "mixer_out") if options.components is None else options.components


def directions_of(options: "Options") -> Sequence[str]:
    """Both directions, or the one that is defined: of noise restoration, of an ablation disruption."""
    write = checked_write(options.write)
    if write.kind in ABLATIONS:
        return _ablated(options, write)
    if options.noise is None and options.preset is None:
        return tuple(DIRECTIONS) if options.directions is None else options.directions
    if options.directions is not None and "disruption" in options.directions:
        raise InvalidOption(
            "With noise only restoration is measured: what a disruption by noise would mean is not defined. "
            'Use directions=["restoration"], or a corrupt prompt.'
        )
    return ("restoration",) if options.directions is None else options.directions


def _check_align(options: "Options") -> None:
    if options.align != "strict" and (options.noise is not None or options.preset is not None):
        raise InvalidOption(f"align={options.align!r} pairs two prompts, and noise corrupts the one: leave align= out.")


def _check_something(options: "Options") -> None:
    if options.components in ((), []) and not any(getattr(options, name) for name in OTHERS):
        raise InvalidOption(f"No component was asked for. Valid: {', '.join(WHOLE)}; or one of {', '.join(OTHERS)}.")


def clean_alone(options: Mapping[str, Any]) -> bool:
    """Whether these options measure the clean run alone, so that pairs need no corrupt prompt: knockouts do."""
    compare = [name for name in (*OTHERS, *COMPARE) if name != "knockout"]
    nothing_else = options.get("components") in ((), []) and not any(options.get(name) for name in compare)
    return bool(options.get("knockout")) and nothing_else


def noised(options: Mapping[str, Any]) -> bool:
    """Whether these options corrupt by noise, so that a pair's own corrupt prompt would be one too many."""
    return options.get("noise") is not None or options.get("preset") is not None


def _check_direct(options: "Options") -> None:
    parts = options.heads or options.neurons or options.experts
    if options.direct and options.components in ((), []) and not parts:
        raise InvalidOption(
            "direct= follows patched components, heads, neurons or experts: ask for some, or leave it out."
        )


def _check_edges(options: "Options") -> None:
    write = checked_write(options.write)
    if options.edges and (write.kind != "donor" or write.alpha != 1):
        raise InvalidOption("edges= are patched with what the other run has, whole: leave write= out, or edges=.")


def _check_paths(options: "Options") -> None:
    if options.senders and options.given:
        raise InvalidOption("senders= are followed in the pair's own runs: leave given= out, or the senders.")
    if options.senders and checked_write(options.write).kind in TENSORED:
        raise InvalidOption(f"senders= cannot be patched with write={options.write!r}: leave one out.")


def _check_given(options: "Options") -> None:
    write = checked_write(options.write)
    if options.given and (write.kind != "donor" or options.noise is not None or options.preset is not None):
        raise InvalidOption("given= puts the other prompt's activations there: leave noise=, preset= and write= out.")


def _check_circuit(options: "Options") -> None:
    write = checked_write(options.write)
    if not options.circuit:
        return
    if options.circuit_of == "edges" and not options.circuit_input:
        raise InvalidOption("circuit_input=False is about nodes: edges from the embedding are ranked as all others.")
    if options.noise is not None or options.preset is not None or options.given:
        raise InvalidOption("circuit= compares two prompts as they are: leave noise=, preset= and given= out.")
    if write.kind in TENSORED or write.alpha != 1:
        raise InvalidOption(
            f"circuit= ablates by write='donor', 'mean', 'zero' or 'resample', whole: leave {write.kind!r} with "
            f"alpha={write.alpha:g} out."
        )
    if options.circuit_how == "restored":
        if write.kind != "donor":
            raise InvalidOption(f"circuit_how='restored' puts clean activations there: leave write={write.kind!r} out.")
        if options.circuit_tested is not None or not options.circuit_input:
            raise InvalidOption(
                "circuit_tested= and circuit_input=False are about circuit_how='kept', where the rest is ablated: "
                "leave them out of 'restored'."
            )
    arm = direction_of_circuit(options.circuit_how)
    if options.directions is not None and arm not in options.directions:
        raise InvalidOption(f"circuit_how={options.circuit_how!r} is a {arm}: leave directions= out, or name it there.")


def direction_of_circuit(how: str) -> str:
    """The direction in which sets of nodes are measured."""
    return "disruption" if how == "kept" else "restoration"


def _check_preset(options: "Options") -> None:
    """Raises InvalidOption where the preset and another option both say something."""
    if options.preset is None:
        if options.noise is not None and options.noise.rome:
            raise InvalidOption('Noise(rome=True) is a part of preset="rome": ask for the preset instead.')
        return
    same = {"noise": (None, Noise(), ROME_NOISE), "window": (1, preset_windows(options)), "metric": (None, "prob")}
    wrong = [f"{name}=" for name, allowed in same.items() if getattr(options, name) not in allowed]
    if wrong:
        raise InvalidOption(
            'preset="rome" sets noise (3 σ, 10 draws, its own seed), windows of 10 layers for attn_out and mlp_out, '
            f'and metric="prob" by itself: leave out {", ".join(wrong)} or the preset.'
        )


def _ablated(options: "Options", write: Write) -> Sequence[str]:
    if options.noise is not None or options.preset is not None:
        raise InvalidOption(f"write={write.kind!r} takes from the clean run, and noise corrupts: ask for one of them.")
    if options.sever or (options.directions is not None and "restoration" in options.directions):
        raise InvalidOption(
            f"With write={write.kind!r} only disruption is measured: nothing clean is written that could bring "
            'anything back. Use directions=["disruption"], without sever=.'
        )
    return ("disruption",) if options.directions is None else options.directions
