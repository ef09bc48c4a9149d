"""When memory runs out: what says so, and the work in halves."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from causal_tracing.errors import OutOfMemory

Item = TypeVar("Item")
Found = TypeVar("Found")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; CPU and GPU say it in different words."""
    torch = sys.modules.get("torch")  # where it is not loaded, its errors are not raised
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory", "status_alloc_failed")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


@contextmanager
def memory_said(reason: str) -> Iterator[None]:
    """Raises OutOfMemory, with this reason, for whatever says that memory ran out."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(reason) from error
        raise


def in_parts(items: Sequence[Item], work: Callable[[Sequence[Item]], Found], too_large: str) -> Iterator[Found]:
    """What the work gives of all items, or of what fits: halves of them where memory runs out.

    Raises OutOfMemory, saying `too_large`, where one alone does not fit.
    """
    try:
        found = [work(items)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        found = []  # the halves are worked on outside this block: an exception keeps its frames' tensors alive
    if not found and len(items) == 1:
        raise OutOfMemory(too_large)
    yield from found
    if not found:
        half = len(items) // 2
        for part in (items[:half], items[half:]):
            yield from in_parts(part, work, too_large)
