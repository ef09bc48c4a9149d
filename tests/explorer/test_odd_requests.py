"""What a page may send, and nobody means: each is one known error, and none a fault of the server."""

from collections.abc import Iterator
from typing import Any

import pytest

from explorers import Client, asked, explorer, toy_model


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with explorer(toy_model(layers=2)) as client:
        yield client


@pytest.mark.parametrize("path", ["tokens", "preview", "estimate", "traces"])
@pytest.mark.parametrize("name", ["clean", "corrupt", "answer"])
def test_half_a_letter_is_said_of_its_field(client: Client, path: str, name: str) -> None:
    body = asked()
    body["pair"][name] += "\ud83d"  # of what was cut out of a text
    told = client.post(path, body, 422)
    assert told["field"] == name
    assert f"{name} has half a letter (U+D83D)" in told["message"]


@pytest.mark.parametrize("pair", [{}, {"clean": "the cat ran"}, {"corrupt": "the dog ran"}, {"answer": " cat"}])
def test_what_a_trace_of_missing_prompts_would_take_is_not_known(client: Client, pair: dict[str, Any]) -> None:
    told = client.post("estimate", {"pair": pair, "tab": "one"}, 422)
    assert told["message"] == f"The {'corrupt' if 'clean' in pair else 'clean'} prompt is empty. Type one."


def test_a_way_to_pair_tokens_is_a_name(client: Client) -> None:
    for align in (3, "left", ["strict"], None):
        told = client.post("traces", asked(options={"align": align}), 422)
        assert (told["field"], told["message"].partition(". ")[0]) == ("align", f"There is no alignment {align!r}")


def test_no_name_is_none(client: Client) -> None:
    id = client.start(asked(tab="kept"))
    client.last(id)
    assert "no letter or digit" in client.post(f"traces/{id}/save", {"name": None}, 422)["message"]
