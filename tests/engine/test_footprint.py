"""What a row takes is measured on the model, so that batches fit the budget whatever the layers do."""

import pytest
import torch

from causal_tracing.engine.footprint import Height, footprint
from causal_tracing.engine.hooks.replay import Replay
from causal_tracing.engine.memory import FEW, rows_that_fit, sizes
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.sites import Site
from loaded import fresh

LARGE = 2**22  # bytes
ONE, OTHER = Run((5, 17, 42, 11, 60, 33, 8)), Run((5, 23, 42, 11, 71, 33, 8))


def hungry():
    """A model one of whose layers needs much for each row, and gives the same."""
    model = fresh("llama")

    def hook(_, __, output):
        torch.zeros(len(output), LARGE // 4)
        return output

    model.part(1, "mlp").register_forward_hook(hook)
    return model


def height(work):
    with Height() as found:
        work()
    return found.now, found.most


def test_what_is_alive_at_once():
    def work():
        one = torch.zeros(1000)
        two = one + 1
        view = two.view(10, 100)
        del two
        other = view.t().contiguous()  # 12,000 bytes
        del one, view
        torch.cat([other, other]).mul_(2)[1:] * 2  # 4,000, 8,000 and 7,960

    assert height(work) == (0, 4000 + 8000 + 7960)


def test_what_was_there_before_is_not_counted():
    weights = torch.ones(10)
    assert height(lambda: weights.view(2, 5).add_(1)) == (0, 0)


def test_a_row_takes_what_its_largest_layer_takes():
    found, plain = footprint(hungry(), 7, 1), footprint(fresh("llama"), 7, 1)
    assert plain.row < LARGE / 20
    assert LARGE <= found.row <= LARGE + plain.row


def test_batches_follow_what_was_measured():
    model = hungry()
    edits = [Edit(Site("resid_post", layer, 2), From(OTHER, 2)) for layer in range(2)] * 20
    worlds = [World(ONE, (edit,), (6,)) for edit in edits]
    budget = 12 * LARGE
    batches = [*Replay(model, worlds, budget).batches()]
    assert max(map(len, batches)) == rows_that_fit(model, 7, 1, budget) == 11
    assert sorted(number for batch in batches for number in batch) == [*range(40)]
    assert [len(batch) for batch in Replay(fresh("llama"), worlds, budget).batches()] == [40]


def test_few_rows_share_a_forward_unasked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("causal_tracing.engine.hooks.replay.rows_that_fit", None)
    worlds = [World(ONE, (), (6,), again=0)] * FEW
    assert [*Replay(hungry(), worlds, LARGE).batches()] == [[*range(FEW)]]


def test_calls_of_the_packed_engine_follow_too():
    budget = 12 * LARGE
    assert sizes(hungry(), budget).call < 6 * 12
    assert sizes(fresh("llama"), budget).call == 1024


def test_memory_that_runs_out_for_two_rows_leaves_one(monkeypatch: pytest.MonkeyPatch):
    model = fresh("llama")

    def hook(_, __, output):
        if len(output) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return output

    model.part(1, "mlp").register_forward_hook(hook)
    assert footprint(model, 7, 1).rows(2**40) == 1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, while it is imported
def test_flex_attention_is_measured_too():
    """It is an operation of a higher order, which modes that look into operations must say that they bear."""
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = torch.randn(3, 1, 2, 16, 8)
    with torch.compiler.set_stance("force_eager"), Height() as height:
        found = flex_attention(q, k, v)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert height.most >= found.nbytes
