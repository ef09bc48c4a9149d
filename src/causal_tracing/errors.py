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
from collections.abc import Iterable


class CausalTracingError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class InputError(CausalTracingError):
    """What the caller wrote cannot be done as it stands."""

    exit_code = 2


class InvalidPair(InputError):
    """A pair that cannot be used as it stands."""


class MisalignedPair(InvalidPair):
    """The clean and the corrupt prompt do not match token by token."""


class InvalidOption(InputError):
    """An option or a name that does not exist, or does not fit the others."""


class InvalidEdit(InputError):
    """Edits that contradict each other, or that name a place which is not there."""


class InvalidResults(InputError):
    """A saved trace that is missing, damaged, or written by a newer version."""


class MachineError(CausalTracingError):
    """Disk, memory or network."""

    exit_code = 3


class OutOfMemory(MachineError):
    """The model, or a single world, does not fit into memory."""


class ModelError(CausalTracingError):
    """The model or its tokenizer."""

    exit_code = 4


class ModelNotFound(ModelError):
    """No such folder, file, repository or revision, or no access to it."""


class UnsupportedModel(ModelError):
    """Not a causal decoder, or one whose parts cannot be told apart."""


class UnsupportedTokenizer(ModelError):
    """A tokenizer that cannot say where its tokens lie in the text."""


class ComponentNotOffered(ModelError):
    """A component that this model does not have, or whose checks did not hold."""


class CannotPack(ModelError):
    """The packed engine cannot run this model, and says why; replay can."""


class Note(UserWarning):
    """Something about the model that a result depends on, and that is no error."""


class EngineNote(Note):
    """The packed engine is not used, and why. Results are right; they take longer."""


class ComponentNote(Note):
    """A component is usually traced, and this model does not offer it: why, and what is traced instead."""


class FormatNote(Note):
    """Pairs were read from a file of another format: what was changed in its rows, or left out of them."""


def nearest(asked: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid one, and all of them."""
    names = list(valid)
    close = difflib.get_close_matches(asked, names, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(names)}."
