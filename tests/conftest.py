"""What more than one test file needs."""

import pytest
import torch

import causal_tracing
from causal_tracing.models.model import Model

torch.set_num_threads(1)  # threads slow tiny models down, and the workers that share the machine


@pytest.fixture(scope="session")
def demo() -> Model:
    """The embedded model, loaded once; downloaded and converted where the user's cache does not have it yet."""
    return causal_tracing.load("demo", device="cpu", progress=False)
