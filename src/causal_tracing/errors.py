"""Everything that can go wrong, in one tree.

CausalTracingError
├── InputError                  what the caller wrote (exit code 2)
│   ├── InvalidPair             a pair that cannot be used as it stands
│   │   └── MisalignedPair      the two prompts do not match token by token
│   ├── InvalidOption           an option or name that does not exist, or does not fit
│   ├── InvalidEdit             edits that contradict each other, or name a place that is not there
│   └── InvalidResults          a saved trace that is missing, damaged or too new
├── MachineError                disk, memory, network (exit code 3)
│   └── OutOfMemory             the model, or one world alone, does not fit
└── ModelError                  model or tokenizer (exit code 4)
    ├── ModelNotFound           no such folder, file, repository or revision, or no access to it
    ├── UnsupportedModel        not a causal decoder, or one whose parts cannot be told apart
    ├── UnsupportedTokenizer    a tokenizer that cannot say where its tokens lie in the text
    ├── ComponentNotOffered     this model has no such component, or its checks did not hold
    └── CannotPack              the packed engine cannot run this model; replay can
"""

import difflib
import sys
import warnings
from collections.abc import Iterable, Sequence


class CausalTracingError(Exception):
    """Base of every error that this package raises on purpose.

    Catch it where any of them is meant; anything else that is raised is a fault of the package, or of a library.
    """

    exit_code = 1


class InputError(CausalTracingError):
    """What the caller wrote cannot be done as it stands.

    Cause: a pair, an option, an edit or a folder; the model was not yet at fault.

    Remedy: change what the message names. What can be seen before a model is loaded is said before.
    """

    exit_code = 2


class InvalidPair(InputError):
    """A pair that cannot be used as it stands.

    Cause: a text that is missing or empty, a subject or span that is not in its prompt, an answer that is its own foil,
    a row of a file that is no pair, or more tokens than the model takes.

    Remedy: the message names the pair, or the line of the file. `preview` shows how a pair is understood before
    anything is traced.
    """


class MisalignedPair(InvalidPair):
    """The clean and the corrupt prompt do not match token by token.

    Cause: the two prompts have different numbers of tokens for this model's tokenizer, or their subjects have.

    Remedy: use prompts of equal length, `align="suffix"` (what both end with), or `align="spans"` (equal roles; needs
    both subjects).
    """


class InvalidOption(InputError):
    """An option or a name that does not exist, or does not fit the others.

    Cause: a name with a slip in it, a value that cannot be meant, or two options that contradict each other.

    Remedy: the message has the nearest valid name and all of them, or which option to leave out.
    """


class InvalidEdit(InputError):
    """Edits that contradict each other, or that name a place which is not there.

    Cause: two writes at one place, a layer or position beyond the model or the prompt, a tensor of another shape, or a
    query that would see no key at all.

    Remedy: the message names the site: leave one of the edits out, or choose a place that is there.
    """


class InvalidResults(InputError):
    """A saved trace that is missing, damaged, or written by a newer version.

    Cause: a folder that holds something else, a file that was changed or cut off, or a run folder that was begun with
    another model, other options or other pairs.

    Remedy: give another folder, restore the file, upgrade the package, or begin the run anew; what differs is named.
    """


class MachineError(CausalTracingError):
    """Disk, memory or network.

    Cause: a full disk, a folder that cannot be written, a port that is taken, a download that failed, an extra that is
    not installed, or another process at work in the folder.

    Remedy: the message says what is needed (for an extra, the pip command). The same command goes on with a run folder
    where it was.
    """

    exit_code = 3


class OutOfMemory(MachineError):
    """The model, or a single world, does not fit into memory.

    Cause: batches were made smaller until one world was left, and that did not fit either.

    Remedy: a shorter prompt, a smaller dtype, another device, or `device_map`.
    """


class ModelError(CausalTracingError):
    """The model or its tokenizer.

    Cause: what was asked for cannot be had from this model.

    Remedy: `check` says what holds on it, with the measured differences.
    """

    exit_code = 4


class ModelNotFound(ModelError):
    """No such folder, file, repository or revision, or no access to it.

    Cause: a name with a slip in it, a folder without weights, a gated repository, or no network.

    Remedy: see that the name is right; log in to the hub for gated models; without a network give a folder.
    """


class UnsupportedModel(ModelError):
    """Not a causal decoder, or one whose parts cannot be told apart.

    Cause: an encoder, layers that are used more than once, or a model whose numbers for a prompt depend on what is run
    beside it.

    Remedy: the message says which check did not hold. No option turns a check off: numbers that were not checked would
    not be believed.
    """


class UnsupportedTokenizer(ModelError):
    """A tokenizer that cannot say where its tokens lie in the text.

    Cause: subjects and spans are found by the places of tokens in the text, which slow tokenizers do not tell; or there
    is no chat template, or one that changes the message.

    Remedy: use a fast tokenizer, or leave subject, spans or chat out.
    """


class ComponentNotOffered(ModelError):
    """A component that this model does not have, or whose checks did not hold.

    Cause: an architecture without such a part, one whose parts could not be told apart, or an engine that cannot reach
    it.

    Remedy: the message lists what is offered. `check` has the reason for each.
    """


class CannotPack(ModelError):
    """The packed engine cannot run this model, and says why; replay can.

    Cause: `engine="packed"` was asked for by name.

    Remedy: leave `engine=` out, or ask for `engine="replay"`: the numbers are the same, and take longer.
    """


class Note(UserWarning):
    """Something about the model that a result depends on, and that is no error."""


class EngineNote(Note):
    """The packed engine is not used, and why. Results are right; they take longer."""


class ComponentNote(Note):
    """A component is usually traced, and this model does not offer it: why, and what is traced instead."""


class FormatNote(Note):
    """Pairs were read from a file of another format: what was changed in its rows, or left out of them."""


def warn(message: str, category: type[Note]) -> None:
    """Warns with the line of whoever called the package, however deep inside it this is said."""
    package, frame, level = __name__.partition(".")[0], sys._getframe(), 1
    # What lies between differs from verb to verb. contextlib stands in front of those that are decorated with it.
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in (package, "contextlib"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def nearest(asked: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid one, and all of them."""
    names = list(valid)
    close = difflib.get_close_matches(asked, names, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(names)}."


def some_of(names: Sequence[object], most: int = 5) -> str:
    """The first of some names, and how many more there are: a message of thousands of them would not be read."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
