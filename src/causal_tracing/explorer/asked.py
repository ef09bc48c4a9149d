"""What the page may ask: a pair and a few options by name. Whatever else stands in a request is refused by name.

Nothing here reaches the file system, a model or code: those are fixed when the explorer is started.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from causal_tracing.errors import InputError, InvalidOption, InvalidPair, nearest
from causal_tracing.prompts.alignment import ALIGNMENTS
from causal_tracing.prompts.answers import check_letters
from causal_tracing.prompts.pairs import PLAIN_FIELDS
from causal_tracing.validation import one_of

MOST_LETTERS = 4000  # of a prompt
MOST_WORDS = 400  # letters of every other text
PROMPTS = ("clean", "corrupt")
TEXTS = tuple(name for name in PLAIN_FIELDS if name != "occurrence")
OPTIONS = ("align", "layers", "positions", "metric", "lens")
KINDS = ("heads", "neurons", "experts", "paths", "pattern")
SENDERS = ("z", "attn_out", "mlp_out", "mixer_out")  # whose paths can be followed


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A pair's fields and a trace's options, as they were given."""

    pair: Mapping[str, Any]
    options: Mapping[str, Any]
    tab: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deeper:
    """What is to be seen of one cell: parts of its layer there, its attention pattern, or the paths of a sender.

    `sender` is a component of the layer, with the number of a head behind a dot; "" where no paths are asked for.
    """

    kind: str
    layer: int
    position: int | str
    tab: str
    sender: str = ""


@contextmanager
def of_field(name: str) -> Iterator[None]:
    """What is raised inside belongs to this field of the page."""
    try:
        yield
    except InputError as error:
        if not hasattr(error, "__notes__"):
            error.add_note(name)
        raise


def asked_of(body: Any) -> Asked:
    """A request for a preview, an estimate or a trace. Raises InputError."""
    body = _object(body, ("pair", "options", "tab"), "the request")
    pair = _object(body.get("pair", {}), PLAIN_FIELDS, "pair")
    options = _object(body.get("options", {}), OPTIONS, "options")
    for name in TEXTS:
        with of_field(name):
            _check_text(name, pair.get(name), MOST_LETTERS if name in PROMPTS else MOST_WORDS)
    with of_field("align"):
        one_of("alignment", options.get("align", ALIGNMENTS[0]), ALIGNMENTS)
    given = {name: value for name, value in pair.items() if value not in (None, "")}
    return Asked(pair=given, options=dict(options), tab=_tab(body))


def require_prompts(asked: Asked) -> None:
    """Raises InvalidOption where a prompt is missing."""
    for name in PROMPTS:
        if not asked.pair.get(name):
            raise InvalidOption(f"The {name} prompt is empty. Type one.")


def deeper_of(body: Any) -> Deeper:
    """A request to look into a cell. Raises InputError."""
    fields = ("kind", "layer", "position", "tab")
    of_paths = ("sender", "part") if isinstance(body, dict) and body.get("kind") == "paths" else ()
    body = _object(body, (*fields, *of_paths), "the request")
    kind, layer, position = body.get("kind"), body.get("layer"), body.get("position")
    if kind not in KINDS:
        raise InvalidOption(f"There is no kind {kind!r}. {nearest(str(kind), KINDS)}")
    # type() and not isinstance: true is a number in Python, and none in a request.
    if type(layer) is not int:
        raise InvalidOption(f"layer must be a whole number; it is {layer!r}.")
    if type(position) not in (int, str):
        raise InvalidOption(f"position must be a token's number or a role; it is {position!r:.40}.")
    sender = _sender(body, layer) if kind == "paths" else ""
    return Deeper(kind=kind, layer=layer, position=position, tab=_tab(body), sender=sender)


def _sender(body: Mapping[str, Any], layer: int) -> str:
    """A sender by its name, without its token."""
    name, part = body.get("sender"), body.get("part")
    if name not in SENDERS:
        raise InvalidOption(f"{name!r:.40} is no sender. {nearest(str(name)[:40], SENDERS)}")
    if (part is None) == (name == "z") or type(part) not in (int, type(None)):
        raise InvalidOption(f"part is the number of a head, of z alone; it is {part!r:.40} of {name}.")
    return f"{name} {layer}" + ("" if part is None else f".{part}")


def name_of(body: Any) -> str:
    """The name of a trace that is to be kept. Raises InputError."""
    name = _object(body, ("name",), "the request").get("name")
    _check_text("name", name, MOST_WORDS)
    return name or ""


def _tab(body: Mapping[str, Any]) -> str:
    tab = body.get("tab", "")
    if not isinstance(tab, str) or len(tab) > 64:
        raise InvalidOption("tab must be a short text: it tells one tab of the browser from another.")
    return tab


def _object(value: Any, names: Collection[str], what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidOption(f"{what} must be an object with any of {', '.join(names)}; it is {value!r:.80}.")
    for name in value:
        if name not in names:
            raise InvalidOption(f"There is no field {name!r:.80} in {what}. {nearest(str(name)[:80], names)}")
    return value


def _check_text(name: str, value: Any, most: int) -> None:
    if value is not None and not isinstance(value, str):
        raise InvalidPair(f"{name} must be a text; it is {value!r:.80}.")
    if value and len(value) > most:
        raise InvalidPair(f"{name} has {len(value):,} letters; {most:,} are taken at most. Use a shorter text.")
    check_letters(name, value or "")
