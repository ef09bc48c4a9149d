"""What more than one test file needs."""

import gc
import os
import sys
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

import type_checks

# Before the package is imported: its functions are decorated with whatever stands here then.
jaxtyping.jaxtyped = type_checks.jaxtyped  # pyright: ignore[reportPrivateImportUsage]

import causal_tracing  # noqa: E402
from causal_tracing.models.demo import demo_folder  # noqa: E402
from causal_tracing.models.model import Model  # noqa: E402

# Workers inherit it of pytest, whose readline sets it: what is printed is as wide as in a file.
os.environ.pop("COLUMNS", None)

# What is compiled is kept, whatever the shell says: for the next run, and for the many processes that tests start.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

torch.set_num_threads(1)  # threads slow tiny models down, and the workers that share the machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # so they do in the processes that tests start


def pytest_configure(config: pytest.Config) -> None:
    """What the workers of one run share lies beside their own folders (`loaded.py`)."""
    if hasattr(config, "workerinput"):
        shared = Path(config.option.basetemp).parent / "shared"
        shared.mkdir(exist_ok=True)
        os.environ["TESTS_SHARED"] = str(shared)


@pytest.fixture(scope="session")
def demo() -> Model:
    """The embedded model, loaded once; downloaded and converted where the user's cache does not have it yet."""
    return causal_tracing.load("demo", device="cpu", progress=False)


@pytest.fixture(scope="session")
def demo_tokenizer() -> Any:
    """The embedded model's tokenizer, for tests that run no model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_folder(progress=False))


# Files of tests that run the embedded model: one process does, for to load it takes as long as most of them.
DEMO = ("experiments/test_demo.py", "patching/test_noise_demo.py", "patching/test_paths_demo.py",
        "prompts/test_datasets.py")  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadfile, as always but that these files are handed out as one."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "demo" if file.endswith(DEMO) else file

    return ByFile(config, log)


def pytest_runtest_setup() -> None:
    """Annotations are checked in a function's first calls of each test."""
    type_checks.begin_anew()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: Any) -> None:
    """A browser is left to the next file that has use for one; a process in which one runs can run no other loop."""
    pages = sys.modules.get("pages")
    if pages is not None and not hasattr(getattr(nextitem, "module", None), "browser"):
        pages.end()


def pytest_collection_finish() -> None:
    """What was imported stays: the collector of garbage need not look through it again and again, nor come so often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
