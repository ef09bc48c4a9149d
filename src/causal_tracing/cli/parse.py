"""What the texts of the command line mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal_tracing.errors import InvalidOption

if TYPE_CHECKING:
    from causal_tracing.patching.ablation import Write
    from causal_tracing.patching.noise import Noise


def names(text: str) -> list[str]:
    """a,b as a list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def positions(text: str) -> str | list[int | str]:
    """3,subject_last,last as a list; "each" and "together" as they are."""
    if text in ("each", "together"):
        return text
    return [int(name) if name.lstrip("-").isdigit() else name for name in names(text)]


def layers(text: str | None) -> list[int] | None:
    """0-5,11 as numbers. Raises InvalidOption."""
    if text is None:
        return None
    found: list[int] = []
    for part in names(text):
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            raise InvalidOption(f"--layers {text!r}: {part!r} is neither a layer nor a range. Write such as 0-5,11.")
        found += range(int(first), int(last or first) + 1)
    return found


def size(text: str | None) -> int | None:
    """512MB as a number. Raises InvalidOption."""
    if text is None:
        return None
    units = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}
    digits = text.strip().rstrip("kKmMgGbB ")
    unit = text.strip()[len(digits) :].strip().upper()
    if unit not in units or not digits.replace(".", "", 1).isdigit():
        raise InvalidOption(f"--budget {text!r} is not a size. Write such as 512MB or 2GB.")
    return int(float(digits) * units[unit])


def neurons(text: str | None) -> bool | dict[int, list[int]]:
    """What is named: `all`, or layers with their neurons, as in 5,20:14+1035 (all of layer 5, two of layer 20).

    A layer without neurons has an empty list, which means all of them. Raises InvalidOption.
    """
    if text is None:
        return False
    if text == "all":
        return True
    found: dict[int, list[int]] = {}
    for part in names(text):
        layer, colon, listed = part.partition(":")
        chosen = listed.split("+") if colon else []
        if not layer.isdigit() or not all(neuron.isdigit() for neuron in chosen):
            raise InvalidOption(f"--neurons {text!r}: {part!r} names no neurons. Write all, or such as 5,20:14+1035.")
        found.setdefault(int(layer), []).extend(int(neuron) for neuron in chosen)
    return found


def drawn(draws: int | None, seed: int | None) -> dict[str, Any]:
    """What was said of draws, by the names that Noise and Write have for it."""
    return {name: value for name, value in (("draws", draws), ("seed", seed)) if value is not None}


def noise(text: str | None, *, draws: int | None, seed: int | None, write: str) -> "Noise | None":
    """3sigma as so many standard deviations of the embedding, a number as the noise's own. Raises InvalidOption."""
    given = drawn(draws, seed)
    if text is None:
        if given and write != "resample":
            raise InvalidOption(
                "--draws and --draw-seed say how noise or a reference is drawn. Give --noise too, such as 3sigma, or "
                "--write resample."
            )
        return None
    from causal_tracing.patching.noise import Noise

    relative = text.endswith("sigma")
    try:
        strength = float(text.removesuffix("sigma"))
    except ValueError:
        raise InvalidOption(f"--noise {text!r} is no strength. Write such as 3sigma, or a number.") from None
    if relative:
        return Noise(scale=strength, **given)
    return Noise(scale=1.0, sigma=strength, **given)


def write(
    kind: str, *, alpha: float, reference: Path | None, tensors: Path | None, draws: int | None, seed: int | None
) -> "Write":
    """What is written, with the prompts and tensors of its files. Raises InvalidOption."""
    from causal_tracing.patching.ablation import Write

    return Write(
        kind,
        alpha=alpha,
        prompts=[] if reference is None else _lines(reference),
        tensors={} if tensors is None else _tensors(tensors),
        **(drawn(draws, seed) if kind == "resample" else {}),
    )


def _lines(path: Path) -> list[str]:
    """The prompts of a file, one a line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption(f"--reference {path} cannot be read: {error}") from None
    return [line for line in text.split("\n") if line.strip()]


def _tensors(path: Path) -> dict[tuple[str, int], Any]:
    """The tensors of a safetensors file, named as in resid_post.12."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InvalidOption(f"--tensors {path} cannot be read as safetensors: {error}") from None
    named = {}
    for name, tensor in found.items():
        component, _, layer = name.rpartition(".")
        if not component or not layer.isdigit():
            raise InvalidOption(f"--tensors {path}: {name!r} names no place. Name tensors such as resid_post.12.")
        named[component, int(layer)] = tensor
    return named


def shard(text: str | None) -> tuple[int, int]:
    """2/8 as the third of eight (from 0). Raises InvalidOption."""
    if text is None:
        return 0, 1
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise InvalidOption(f"--shard {text!r} is no shard. Write such as 0/4, 1/4, 2/4 and 3/4.")
    return int(first), int(count)


def window(text: str | None) -> int | dict[str, int]:
    """10 for all components, or attn_out=10,mlp_out=5. Raises InvalidOption."""
    if text is None:
        return 1
    if text.isdigit():
        return int(text)
    widths: dict[str, int] = {}
    for part in names(text):
        component, _, width = part.partition("=")
        if not width.isdigit():
            raise InvalidOption(
                f"--window {text!r}: {part!r} is no width. Write such as 10, or attn_out=10,mlp_out=10."
            )
        widths[component] = int(width)
    return widths
