"""What is opened of a cell: experts of its layer, and paths from its head or MLP, over HTTP and on the page."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from playwright.sync_api import Browser

import causal_tracing as ct
from causal_tracing.errors import ComponentNotOffered
from causal_tracing.explorer import live
from causal_tracing.models.model import Model
from explorer_pages import CLEAN, CORRUPT, opened, traced, wait
from explorers import Client, Event, asked, explorer, small_model, toy_model
from joint import PAIR, tiny
from pages import launched, needs_browser, violations

STORE: dict[str, Any] = {"clean": CLEAN, "corrupt": CORRUPT, "answer": " Rome", "foil": " Paris"}
EXPERTS: dict[str, Any] = {name: getattr(PAIR, name) for name in ("clean", "corrupt", "answer", "foil")}
DIRECTIONS = ("restoration", "disruption")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


def inside(client: Client, pair: dict[str, Any], **cell: Any) -> list[Event]:
    """All that is told of what is inside a cell."""
    id = client.start({"pair": pair})
    client.last(id)
    return list(client.told(client.post(f"traces/{id}/deeper", cell, 202)["id"]))


@pytest.mark.parametrize(
    ("sender", "name"), [({"sender": "z", "part": 3}, "z 0.3"), ({"sender": "mlp_out"}, "mlp_out 0")]
)
def test_paths_from_a_cell_are_those_of_every_receiver(sender: dict[str, Any], name: str):
    model = small_model()
    with explorer(model) as client:
        told = inside(client, STORE, kind="paths", layer=0, position=4, **sender)
    parts = [each["part"] for _, kind, each in told if kind == "paths"]
    assert told[-1][1] == "done"
    waiting = [part["pairs"][0]["metrics"]["logit_diff"]["status"][0].count("w") for part in parts]
    assert waiting == sorted(waiting, reverse=True)
    assert waiting[0] > waiting[-1] == 0
    assert [part["filling"] for part in parts] == [True] * (len(parts) - 1) + [False]
    found = ct.paths(model, ct.Pair(**STORE), senders=[f"{name} @ 4"], progress=False).of("paths")
    expected = found.sel(metric="logit_diff", component="path", sender=f"{name} @ 4").squeeze("pair")
    assert [each["name"] for each in parts[-1]["senders"]] == [f"{name} @ 4"]
    receivers = [each["name"] for each in parts[-1]["receivers"]]
    assert sorted(receivers) == sorted(expected.receiver.values)
    numbers = parts[-1]["pairs"][0]["metrics"]["logit_diff"]
    for direction in DIRECTIONS:
        assert_allclose(numbers[direction][0], expected[direction].sel(receiver=receivers), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("family", "layers"), [("mixtral", [0, 1, 2, 3]), ("deepseek_v3", [1, 2, 3])])
def test_experts_are_looked_into_where_there_are_any(family: str, layers: list[int]):
    model = tiny(family)
    with explorer(model) as client:
        assert client.get("model")["deeper"]["experts"] == layers
        told = inside(client, EXPERTS, kind="experts", layer=2, position=5)
    trace = ct.trace(model, PAIR, components=[], experts={2: []}, expert_positions=[5], progress=False)
    found = trace.of("experts").sel(metric="logit_diff", layer=2, position=5).squeeze(["pair", "component"])
    expected = np.stack([found[direction].values for direction in DIRECTIONS], axis=1)
    rows = told[-2][2]["rows"]
    assert_allclose([row[1:3] for row in rows], expected[[row[0] for row in rows]], rtol=0, atol=1e-4)
    largest = [max(map(abs, row[1:3])) for row in rows]
    assert largest == sorted(largest, reverse=True)
    assert sorted(row[0] for row in rows) == [*range(4)]


def test_what_a_model_has_not_is_not_offered():
    with explorer(small_model()) as client:
        offered = client.get("model")["deeper"]
    assert {*offered} == {"heads", "neurons", "pattern", "paths z", "paths attn_out", "paths mlp_out"}
    with explorer(toy_model(layers=3)) as client:
        assert "heads" not in client.get("model")["deeper"]
        said = inside(client, asked()["pair"], kind="experts", layer=1, position=1)[-1]
        assert said[1] == "error"
        assert "experts is not offered" in said[2]["message"]


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({}, "None is no sender"),
        ({"sender": "resid_post"}, "no sender"),
        ({"sender": "z"}, "number of a head"),
        ({"sender": "z", "part": "1"}, "number of a head"),
        ({"sender": "mlp_out", "part": 1}, "number of a head"),
        ({"kind": "heads", "sender": "z"}, "sender"),
    ],
)
def test_a_sender_that_cannot_be_meant_is_refused(more: dict[str, Any], word: str):
    with explorer(toy_model(layers=3)) as client:
        id = client.start(asked())
        client.last(id)
        cell = {"kind": "paths", "layer": 1, "position": 1} | more
        assert word in client.post(f"traces/{id}/deeper", cell, 422)["message"]


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_a_head_and_an_mlp_show_where_their_paths_go(browser: Browser, width: int):
    look: dict[str, Any] = {"viewport": {"width": width, "height": 800}}
    with explorer(small_model()) as client, opened(browser, client, bypass_csp=True, **look) as page:
        traced(page)
        page.locator('#map td[data-at="0,4"]').click()
        wait(page, "document.querySelectorAll('#deeper-shown tbody tr').length === 4")
        page.get_by_role("button", name="paths from head 3").click()
        wait(page, "document.getElementById('deeper-state').textContent.includes('z 0.3 @ 4 adds')")
        assert page.locator("#paths-map tbody th").all_inner_texts() == ["z 0.3 @ 4"]
        assert page.locator("#paths-map td.waiting").count() == 0
        page.locator('#deeper-switches button[data-kind="paths mlp_out"]').press("Enter")
        wait(page, "document.getElementById('deeper-state').textContent.includes('mlp_out 0 @ 4 adds')")
        page.locator('#paths-map td[tabindex="0"]').focus()
        page.keyboard.press("End")
        assert page.locator("#paths-readout").inner_text().startswith("mlp_out 0 @ 4, every path (what it does in all)")
        page.locator('input[name="paths-d"][value="disruption"]').check()
        assert page.locator('#switches input[value="disruption"]').is_checked()  # one switch for the whole page
        assert page.locator("#paths-graph .node").count() > 2
        assert violations(page) == []
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0
        page.locator('#map td[data-at="1,4"]').click()
        wait(page, "document.querySelectorAll('#deeper-shown tbody tr').length === 4")
        page.locator('input[name="d"][value="restoration"]').check()  # what is gone is drawn no more


@needs_browser
def test_the_experts_of_a_layer_are_shown(browser: Browser):
    with explorer(tiny("deepseek_v3")) as client, opened(browser, client) as page:
        traced(page, EXPERTS["clean"], EXPERTS["corrupt"])
        page.locator('#map td[data-at="0,2"]').click()
        wait(page, "!document.getElementById('deeper').hidden")
        assert page.locator('#deeper-switches button[data-kind="experts"]').count() == 0
        page.locator('#map td[data-at="2,2"]').click()
        page.locator('#deeper-switches button[data-kind="experts"]').click()
        wait(page, "document.getElementById('deeper-state').textContent === '4 experts measured.'")
        assert page.locator("#deeper-shown tbody th").all_inner_texts()[0].startswith("expert ")


@needs_browser
def test_what_does_not_hold_on_the_model_is_said_and_offered_no_more(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = live.plan_job

    def refused(model: Model, pairs: Any, options: Any) -> Any:
        if options.heads:
            raise ComponentNotOffered("z is not offered on this model: its check failed.")
        return plan(model, pairs, options)

    monkeypatch.setattr(live, "plan_job", refused)
    with explorer(small_model()) as client, opened(browser, client) as page:
        traced(page)
        page.locator('#map td[data-at="1,3"]').click()
        wait(page, "document.getElementById('deeper-state').textContent.startsWith('z is not offered')")
        page.locator('#map td[data-at="1,4"]').click()
        wait(page, "document.getElementById('deeper-state').textContent.includes('neurons measured')")
        assert page.locator('#deeper-switches button[data-kind="heads"]').count() == 0
