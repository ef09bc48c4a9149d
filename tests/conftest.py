"""What more than one test file needs."""

import jaxtyping
import pytest
import torch

import type_checks

# Before the package is imported: its functions are decorated with whatever stands here then.
jaxtyping.jaxtyped = type_checks.jaxtyped  # pyright: ignore[reportPrivateImportUsage]

import causal_tracing  # noqa: E402
from causal_tracing.models.model import Model  # noqa: E402

torch.set_num_threads(1)  # threads slow tiny models down, and the workers that share the machine


@pytest.fixture(scope="session")
def demo() -> Model:
    """The embedded model, loaded once; downloaded and converted where the user's cache does not have it yet."""
    return causal_tracing.load("demo", device="cpu", progress=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process loads the demo model: with --dist loadgroup its files stay together, and every other file's tests.

    A file that marks its own group keeps it: two marks would be joined to a name that no other file has.
    """
    files = {item: item.nodeid.partition("::")[0] for item in items}
    of_demo = {files[item] for item in items if "demo" in getattr(item, "fixturenames", ())}
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("demo" if files[item] in of_demo else files[item]))
