"""What the texts of the command line mean."""

from typing import TYPE_CHECKING, Any

from causal_tracing.errors import InvalidOption

if TYPE_CHECKING:
    from causal_tracing.noise import Noise


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


def noise(text: str | None, *, draws: int | None, seed: int | None) -> "Noise | None":
    """3sigma as so many standard deviations of the embedding, a number as the noise's own. Raises InvalidOption."""
    given: dict[str, Any] = {name: value for name, value in (("draws", draws), ("seed", seed)) if value is not None}
    if text is None:
        if given:
            raise InvalidOption("--draws and --noise-seed say how --noise is drawn. Give --noise too, such as 3sigma.")
        return None
    from causal_tracing.noise import Noise

    relative = text.endswith("sigma")
    try:
        strength = float(text.removesuffix("sigma"))
    except ValueError:
        raise InvalidOption(f"--noise {text!r} is no strength. Write such as 3sigma, or a number.") from None
    if relative:
        return Noise(scale=strength, **given)
    return Noise(scale=1.0, sigma=strength, **given)


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
