"""The checks of annotations that the tests run under: a wrong type or shape is an error, wherever it stands."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

import causal_tracing as ct
from causal_tracing.engine.hooks.replay import Replay
from causal_tracing.interventions.edits import Run
from causal_tracing.patching.metrics.scoring import spread
from type_checks import CALLS, jaxtyped

Matrix = Float[Tensor, "row column"]


@jaxtyped()
def longest(texts: Sequence[str], least: int = 0) -> str:
    return max([text for text in texts if len(text) >= least], default=None)  # pyright: ignore[reportReturnType]


@jaxtyped()
def added(one: Matrix, other: Matrix, *, keep: bool = True) -> Matrix:
    return one + other if keep else (one + other)[:-1]


@jaxtyped()
def rows(one: Matrix, other: Matrix) -> Iterator[Float[Tensor, " column"]]:
    yield from one + other


@jaxtyped()
@dataclass(frozen=True)
class Two:
    one: Matrix
    name: str


@jaxtyped()
def itself(text: str) -> Any:
    return text


def adding(number: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    @jaxtyped()
    def plain(other: int) -> int:
        return number + other

    @jaxtyped()
    def shaped(one: Matrix, other: Matrix) -> Matrix:
        return number * one + other

    return plain, shaped


def test_arguments_and_results_are_checked():
    assert longest(["a", "bc"]) == longest(texts=["bc"], least=1) == "bc"
    for call in (lambda: longest([1]), lambda: longest(["a"], "b"), lambda: longest([])):  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeCheckError):
            call()


def test_an_axis_has_one_size_in_a_call():
    small, large = torch.ones(2, 3), torch.ones(4, 3)
    assert torch.equal(added(small, small), 2 * small)
    assert torch.equal(added(large, large), 2 * large)
    assert len(list(rows(small, small))) == 2
    wrong = (
        lambda: added(small, large),
        lambda: added(small, small[:1]),  # could be broadcast
        lambda: added(small, small, keep=False),
        lambda: added(small.long(), small.long()),
        lambda: list(rows(small, small[:1])),
    )
    for call in wrong:
        with pytest.raises(TypeCheckError):
            call()


def test_the_fields_of_a_dataclass_are_checked():
    assert Two(torch.ones(2, 3), "two").name == "two"
    for one, name in ((torch.ones(3), "two"), (torch.ones(2, 3), 2)):
        with pytest.raises(TypeCheckError):
            Two(one, name)  # pyright: ignore[reportArgumentType]


def test_each_closure_is_checked_and_called_itself():
    for number in (1, 2, 3):
        plain, shaped = adding(number)
        assert plain(10) == 10 + number
        assert shaped(torch.ones(2, 3), torch.ones(2, 3))[0, 0] == number + 1
        with pytest.raises(TypeCheckError):
            plain("a")
        with pytest.raises(TypeCheckError):
            shaped(torch.ones(2, 3), torch.ones(1, 3))
    with pytest.raises(TypeCheckError):
        adding(0.5)[0](1)  # no whole number comes out


@pytest.mark.parametrize("test", [1, 2])
def test_the_first_calls_of_each_test_are_checked(test: int):
    with pytest.raises(TypeCheckError):
        itself(test)  # pyright: ignore[reportArgumentType]
    for _ in range(CALLS):
        itself("a")
    assert itself(test) == test  # pyright: ignore[reportArgumentType]


def test_the_package_runs_under_these_checks():
    wrong = (
        lambda: ct.Pair(clean=3, answer=" yes"),  # pyright: ignore[reportArgumentType]
        lambda: Run(("a", "b")),  # pyright: ignore[reportArgumentType]
        lambda: ct.load("demo", progress="no"),  # pyright: ignore[reportArgumentType]
        lambda: spread(np.ones((2, 5)), np.ones((6, 4))),
    )
    for call in wrong:
        with pytest.raises(TypeCheckError):
            call()
    assert Replay.logits.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]


def test_pythons_random_state_is_left_alone():
    before = random.getstate()
    for _ in range(20):
        longest(["a"] * 20)
    assert random.getstate() == before
