"""What more than one test file needs."""

import gc
import os

import jaxtyping
import pytest
import torch

import type_checks

# Before the package is imported: its functions are decorated with whatever stands here then.
jaxtyping.jaxtyped = type_checks.jaxtyped  # pyright: ignore[reportPrivateImportUsage]

import causal_tracing  # noqa: E402
from causal_tracing.models.model import Model  # noqa: E402

torch.set_num_threads(1)  # threads slow tiny models down, and the workers that share the machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # so they do in the processes that tests start


@pytest.fixture(scope="session")
def demo() -> Model:
    """The embedded model, loaded once; downloaded and converted where the user's cache does not have it yet."""
    return causal_tracing.load("demo", device="cpu", progress=False)


def pytest_runtest_setup() -> None:
    """Annotations are checked in a function's first calls of each test."""
    type_checks.begin_anew()


def pytest_collection_finish() -> None:
    """What was imported stays: the collector of garbage need not look through it again and again."""
    gc.collect()
    gc.freeze()
