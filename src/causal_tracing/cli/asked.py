"""The pairs that a command names: read before a model is loaded, and finished with its tokenizer where need be."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from causal_tracing.cli import console
from causal_tracing.errors import InvalidOption
from causal_tracing.prompts.answers import TARGETS, meant
from causal_tracing.validation import one_of

if TYPE_CHECKING:
    from causal_tracing.models.model import Model
    from causal_tracing.prompts.files import ReadRows
    from causal_tracing.prompts.pairs import Pair

STDIN = "/dev/stdin"  # which "-" names, as elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The pairs as far as they are known without a tokenizer; none yet where they are named by token ids."""

    pairs: "list[Pair]"
    reading: "ReadRows | None" = None
    chat: bool = False
    corrupt_by: str | None = None

    def check(self, options: dict[str, Any], *, alone: bool) -> None:
        """What can be said of them and the options without a model. Raises InputError."""
        from causal_tracing.patching.options.together import noised  # no help needs it

        if self.corrupt_by is not None and noised(options):
            raise InvalidOption("--corrupt-by makes corrupt prompts, and noise takes their place. Give one of them.")
        console.check(self.pairs, options, alone=alone and self.corrupt_by is None)

    def on(self, model: "Model", options: dict[str, Any], *, alone: bool) -> "list[Pair]":
        """The pairs as they are traced on a model. Raises InputError."""
        found = self.pairs
        with console.format_notes():
            if self.reading is not None and not found:
                found = self.reading.pairs(model.tokenizer, chat=self.chat)
                console.check(found, options, alone=alone and self.corrupt_by is None)
            if self.corrupt_by is not None:
                from causal_tracing.prompts.relations import corrupted

                found = corrupted(found, self.corrupt_by, model.tokenizer, seed=options.get("seed", 0))
        return found


def read(
    source: str | None,
    given: dict[str, Any],
    *,
    chat: bool,
    format: str | None = None,
    corrupt_by: str | None = None,
) -> Asked:
    """The pairs of a file or built-in set, or the one whose fields were given. Raises InputError."""
    named = {name: _as_typed(value) for name, value in given.items() if value is not None}
    named |= {name: meant(f"--{name}", named[name]) for name in TARGETS if name in named}
    if source is None:
        return _one(named, chat, {"--format": format, "--corrupt-by": corrupt_by})
    if named:
        raise InvalidOption(
            f"--pairs holds whole pairs; leave out {', '.join('--' + name.replace('_', '-') for name in named)}."
        )
    from causal_tracing.prompts import files
    from causal_tracing.prompts.relations import BY

    if corrupt_by is not None:
        one_of("way to corrupt", corrupt_by, BY)
    reading = files.read(STDIN if source == "-" else source, format=format or files.AUTO)
    with console.format_notes():
        # Token ids are texts to one tokenizer alone, which comes with the model.
        pairs = [] if reading.needs_tokenizer else reading.pairs(chat=chat)
    return Asked(pairs=pairs, reading=reading, chat=chat, corrupt_by=corrupt_by)


def _as_typed(value: Any) -> Any:
    """A text as UTF-8, where the locale knows ASCII alone and Python has kept its bytes as halves of letters."""
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        return os.fsencode(value).decode("utf-8")
    except UnicodeError:  # said of the pair
        return value


def _one(named: Mapping[str, Any], chat: bool, of_files: Mapping[str, str | None]) -> Asked:
    """The pair whose fields were given. Raises InvalidOption."""
    from causal_tracing import Pair

    for flag, value in of_files.items():
        if value is not None:
            raise InvalidOption(f"{flag} says something of a file of pairs. Give --pairs FILE too.")
    missing = [f"--{name}" for name in ("clean", "answer") if name not in named]
    if missing:
        raise InvalidOption(
            f"{' and '.join(missing)} missing. Give --clean, --corrupt, --answer and --foil, or --pairs FILE."
        )
    return Asked(pairs=[Pair(**named, chat=chat)])
