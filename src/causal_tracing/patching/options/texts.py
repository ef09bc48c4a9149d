"""How values are spelled: what a flag of the command line means, and how the same value is written there again.

Reading and writing of each kind of value stand side by side; so does what a configuration file may hold in its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from causal_tracing import validation
from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.interventions.noise import Noise
from causal_tracing.interventions.write import Write
from causal_tracing.patching.options.spelling import Flag, Flags, Text, is_a, itself, joined, list_of, one

DIGITS = 5  # of the number of a layer
MOST_DIGITS = 18  # of any number

# Words, numbers, switches: as they are.
WORD = one(itself, itself, fits=lambda value: is_a(value, str), form="a text")
NUMBER = one(itself, itself, fits=lambda value: is_a(value, int), form="a whole number", kind=int)
SWITCH = one(itself, itself, fits=lambda value: is_a(value, bool), form="true or false", kind=bool)


def is_number(text: str) -> bool:
    """Whether a text is a whole number that anything could have: Python itself reads no more than 4300 digits."""
    return text.isdecimal() and len(text) <= MOST_DIGITS


def names(text: str) -> list[str]:
    """a,b as a list."""
    return [name.strip() for name in text.split(",") if name.strip()]


NAMES = one(names, joined, fits=list_of(str), form='a list of names, such as ["mlp_out"]')
METRIC = one(
    lambda text: names(text) if "," in text else text,
    joined,
    fits=lambda value: is_a(value, str) or list_of(str)(value),
    form='a name, or a list of names, such as ["prob", "logit_diff"]',
    example="Several as prob,logit_diff.",
)
MEASURED = one(
    lambda text: text if text == "all" else names(text),
    joined,
    fits=lambda value: is_a(value, str) or list_of(str)(value),
    form='"all", or a list of names, such as ["prob"]',
    example="Such as all, or prob,neg_kl.",
)


def _listed(form: str, example: str = "") -> Text:
    """True, or names: as a flag such as true, or q,z."""
    return one(
        lambda value: True if value in ("true", True) else names(value),
        lambda value: "true" if value is True else joined(value),
        fits=lambda value: is_a(value, bool) or list_of(str)(value),
        form=f"true, or a list of names{form}",
        example=example,
    )


LISTED = _listed("")
HEADS = _listed(', such as ["q", "z"]', "Such as q,z, or true (z).")
COMPONENTS = one(
    lambda value: () if value in ("none", []) else names(value),
    lambda value: joined(value) or "none",
    fits=list_of(str),
    form='a list of names, such as ["mlp_out"]',
    example="none: only what else is asked for.",
)


def positions(text: str) -> str | list[int | str]:
    """3,subject_last,last as a list; "each" and "together" as they are. No span is called by a number (`Pair`)."""
    if text in ("each", "together"):
        return text
    numbers = ((name, validation.whole_number(name)) for name in names(text))
    return [name if number is None else number for name, number in numbers]


POSITIONS = one(
    positions,
    joined,
    fits=list_of(int, str),
    form='"each", "together", or a list such as [3, "subject_last"]',
    example="Such as 3,subject_last,last.",
)


def _position(value: int | str) -> int | str:
    """A position as a number, a role or span as it is."""
    number = value if isinstance(value, int) else validation.whole_number(value)
    return value if number is None else number


POSITION = one(_position, str, fits=lambda value: is_a(value, int, str), form='a position or a role, such as "last"')
QUERIES = one(
    lambda value: positions(value) if isinstance(value, str) and "," in value else _position(value),
    lambda value: joined(value) if isinstance(value, list) else str(value),
    fits=lambda value: is_a(value, int, str) or list_of(int, str)(value),
    form='a position or a role, such as "last", or a list of such',
    example="Such as last, each, or 3,subject_last.",
)


def layers(text: str) -> list[int]:
    """0-5,11 as numbers. Raises InvalidOption."""
    found: list[int] = []
    for part in names(text):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (not dash or last.isdecimal())):
            raise InvalidOption(f"--layers {text!r}: {part!r} is neither a layer nor a range. Write such as 0-5,11.")
        if max(len(first), len(last)) > DIGITS:  # before a list is made of them
            raise InvalidOption(
                f"--layers {text!r}: no model has so many layers as {part!r} names. Write such as 0-5,11."
            )
        if int(last or first) < int(first):
            raise InvalidOption(f"--layers {text!r}: {part!r} runs backwards. Write {last}-{first}.")
        found += range(int(first), int(last or first) + 1)
    return found


LAYERS = one(layers, joined, fits=list_of(int), form="a list of layers, such as [0, 1]", example="Such as 0-5,11.")


def size(text: str) -> int:
    """512MB as a number. Raises InvalidOption."""
    units = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}
    digits = text.strip().rstrip("kKmMgGbB ")
    unit = text.strip()[len(digits) :].strip().upper()
    if unit not in units or not is_number(digits.replace(".", "", 1)):
        raise InvalidOption(f"--budget {text!r} is not a size. Write such as 512MB or 2GB.")
    return int(float(digits) * units[unit])


SIZE = one(size, str, fits=lambda value: is_a(value, int), form='bytes, or such as "512MB"', example="Such as 512MB.")


def by_layer(parts: str, text: str) -> bool | dict[int, list[int]]:
    """What is named: `all` or `true`, or layers with their parts, as in 5,20:14+1035 (all of layer 5, two of layer 20).

    A layer without parts has an empty list, which means all of them. `parts` are neurons or experts, as the flag is
    called. Raises InvalidOption.
    """
    if text in ("all", "true"):
        return True
    found: dict[int, list[int]] = {}
    for part in names(text):
        layer, colon, listed = part.partition(":")
        chosen = listed.split("+") if colon else []
        if not is_number(layer) or not all(map(is_number, chosen)):
            raise InvalidOption(
                f"--{parts} {text!r:.200}: {part!r:.100} names no {parts}. Write all, or such as 5,20:14+1035."
            )
        found.setdefault(int(layer), []).extend(int(number) for number in chosen)
    return found


def _by_layer_again(value: Any) -> str:
    if value is True:
        return "all"
    return joined(
        [str(layer) + (":" + "+".join(map(str, listed)) if listed else "") for layer, listed in value.items()]
    )


def _of_layers(parts: str) -> Text:
    return one(
        partial(by_layer, parts),
        _by_layer_again,
        fits=lambda value: is_a(value, bool) or (isinstance(value, dict) and all(map(list_of(int), value.values()))),
        form=f"true, or a table from layers to {parts}, such as {{5 = [], 20 = [14, 1035]}}",
        example="Such as all, or 5,20:14+1035.",
    )


NEURONS, EXPERTS = _of_layers("neurons"), _of_layers("experts")


def window(text: str) -> int | dict[str, int]:
    """10 for all components, or attn_out=10,mlp_out=5. Raises InvalidOption."""
    if is_number(text):
        return int(text)
    widths: dict[str, int] = {}
    for part in names(text):
        component, _, width = part.partition("=")
        if not is_number(width):
            raise InvalidOption(
                f"--window {text!r:.200}: {part!r:.100} is no width. Write such as 10, or attn_out=10,mlp_out=10."
            )
        widths[component] = int(width)
    return widths


def _window_again(value: Any) -> str:
    return joined([f"{name}={width}" for name, width in value.items()]) if isinstance(value, Mapping) else str(value)


WINDOW = one(
    window,
    _window_again,
    fits=lambda value: (
        is_a(value, int) or (isinstance(value, dict) and all(is_a(width, int) for width in value.values()))
    ),
    form="a whole number, or a table such as {mlp_out = 10}",
    example="Such as 10, or by component attn_out=10,mlp_out=10.",
)


def shard(text: str) -> tuple[int, int]:
    """2/8 as the third of eight (from 0). Raises InvalidOption."""
    first, _, count = text.partition("/")
    if not (is_number(first) and is_number(count) and int(first) < int(count)):
        raise InvalidOption(f"--shard {text!r:.200} is no shard. Write such as 0/4, 1/4, 2/4 and 3/4.")
    return int(first), int(count)


SHARD = one(
    shard,
    lambda value: "/".join(map(str, value)),
    fits=list_of(int),
    form="a list such as [0, 4]",
    example="Such as 0/4.",
)


def workers(text: str) -> int | str:
    """4 processes, or ray and ray:4. The check says what is neither."""
    return int(text) if is_number(text) else text


WORKERS = one(
    workers,
    str,
    fits=lambda value: is_a(value, int) or is_a(value, str),
    form='a whole number, "ray", or "ray:4"',
    example="Such as 4, ray, or ray:8.",
)

DRAWN = (
    Flag(
        name="draws",
        kind=int,
        help="How many draws, of noise or of the reference, are averaged (default: 10).",
    ),
    Flag(name="draw_seed", kind=int, help="Chooses the draws (default: 0)."),
)


def _drawn(flags: Flags) -> dict[str, Any]:
    """What was said of draws, by the names that Noise and Write have for it."""
    given = (("draws", flags.get("draws")), ("seed", flags.get("draw_seed")))
    return {name: value for name, value in given if value is not None}


def noise(name: str, flags: Flags) -> Noise | None:
    """3sigma as so many standard deviations of the embedding, a number as the noise's own. Raises InvalidOption."""
    given, text = _drawn(flags), flags.get(name)
    if text is None:
        # Draws are of the reference then, and not of noise.
        if given and flags.get("write") != "resample":
            raise InvalidOption(
                "--draws and --draw-seed say how noise or a reference is drawn. Give --noise too, such as 3sigma, or "
                "--write resample."
            )
        return None
    relative = text.endswith("sigma")
    try:
        strength = float(text.removesuffix("sigma"))
    except ValueError:
        raise InvalidOption(f"--noise {text!r} is no strength. Write such as 3sigma, or a number.") from None
    return Noise(scale=strength, **given) if relative else Noise(scale=1.0, sigma=strength, **given)


def _noise_again(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: str(value)}
    table = {key: each for key, each in value.items() if key != "rome" or each}  # ROME's own is the preset's alone
    _check_keys(table, [each.name for each in fields(Noise) if each.name != "rome"])
    asked = asdict(Noise(**table))
    strength = f"{asked['scale']}sigma" if asked["sigma"] is None else str(asked["scale"] * asked["sigma"])
    return {name: strength, "draws": asked["draws"], "draw_seed": asked["seed"]}


NOISE = Text(
    read=noise,
    write=_noise_again,
    fits=lambda value: is_a(value, int, float, dict),
    form='a number, a table such as {scale = 3, draws = 10}, or a text such as "3sigma"',
    example="Such as 3sigma (of the embeddings' standard deviation), or a number as it is.",
    more=DRAWN,
)


def write(name: str, flags: Flags) -> Write:
    """What is written, with the prompts and tensors of its files. Raises InvalidOption."""
    kind, reference, tensors = flags.get(name, "donor"), flags.get("reference"), flags.get("tensors")
    return Write(
        kind,
        alpha=flags.get("alpha", 1.0),
        prompts=_lines(reference) if isinstance(reference, Path) else reference or [],
        tensors={} if tensors is None else read_tensors(tensors),
        **(_drawn(flags) if kind == "resample" else {}),
    )


def _write_again(name: str, value: Any) -> dict[str, Any]:
    _check_keys(value, [each.name for each in fields(Write)])
    flags = {} if value.get("kind", "donor") == "donor" else {name: value["kind"]}
    if value.get("alpha", 1) != 1:
        flags["alpha"] = value["alpha"]
    keys = {"prompts": "reference", "draws": "draws", "seed": "draw_seed", "tensors": "tensors"}
    return flags | {flag: value[key] for key, flag in keys.items() if key in value}


WRITE = Text(
    read=write,
    write=_write_again,
    fits=lambda value: isinstance(value, dict) and isinstance(value.get("tensors", ""), str),
    form='a name such as "zero", or a table such as {kind = "given", tensors = "weights.safetensors"}',
    more=(
        Flag(name="alpha", kind=float, help="How much of it: (1 - alpha) of what is there stays (default: 1)."),
        Flag(name="reference", kind=Path, help="For mean and resample: a text file, one prompt a line."),
        Flag(
            name="tensors",
            kind=Path,
            help="For given and subspace: a safetensors file, tensors named as resid_post.12.",
        ),
        *DRAWN,
    ),
)


def _check_keys(table: Mapping[str, Any], valid: Sequence[str]) -> None:
    """Raises InvalidOption for a key of a table that means nothing."""
    for key in table:
        if key not in valid:
            raise InvalidOption(f"There is no {key!r} in it. {nearest(key, valid)}")


def _lines(path: Path) -> list[str]:
    """The prompts of a file, one a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption(f"--reference {path} cannot be read: {error}") from None
    return [line for line in text.split("\n") if line.strip()]


def read_tensors(path: Path) -> dict[tuple[str, int], Any]:
    """The tensors of a safetensors file, named as in resid_post.12. Raises InvalidOption."""
    try:
        with path.open("rb"):  # before torch is loaded, which takes seconds
            pass
    except OSError as error:
        raise InvalidOption(f"--tensors {path} cannot be read as safetensors: {error}") from None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InvalidOption(f"--tensors {path} cannot be read as safetensors: {error}") from None
    named = {}
    for name, tensor in found.items():
        component, _, layer = name.rpartition(".")
        if not component or not is_number(layer):
            raise InvalidOption(f"--tensors {path}: {name!r} names no place. Name tensors such as resid_post.12.")
        named[component, int(layer)] = tensor
    return named


def write_tensors(path: Path, tensors: Mapping[tuple[str, int], Any]) -> None:
    """The file that `read_tensors` reads back."""
    import torch
    from safetensors.torch import save_file

    save_file({f"{name}.{layer}": torch.as_tensor(each).contiguous() for (name, layer), each in tensors.items()}, path)
