"""What is put together: batches by size, worked out by hand."""

import pytest

from causal_tracing.engine.memory import in_batches


@pytest.mark.parametrize(
    ("sizes", "most", "count", "expected"),
    [
        ([], 4, None, []),
        ([1, 1, 1], 4, None, [[0, 1, 2]]),
        ([2, 2, 1], 4, None, [[0, 1], [2]]),  # as much as is allowed goes in
        ([1, 9, 1, 1], 4, None, [[0], [1], [2, 3]]),  # one that is larger goes alone
        ([9], 4, None, [[0]]),
        ([1, 1, 1, 1, 1], 4, 2, [[0, 1], [2, 3], [4]]),
        ([3, 3, 1], 4, 5, [[0], [1, 2]]),
    ],
)
def test_batches_by_size(sizes: list[int], most: int, count: int | None, expected: list[list[int]]) -> None:
    assert [*in_batches(sizes, most, count)] == expected
