"""The explorer over HTTP: what is streamed, what is cancelled, resumed and shared, and how it ends."""

import os
import signal
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.engine.checks import agreement
from causal_tracing.errors import (
    InvalidOption,
    InvalidPair,
    InvalidResults,
    MachineError,
    OutOfMemory,
    UnsupportedModel,
)
from causal_tracing.explorer.saved import Saved
from causal_tracing.explorer.serve import Address, Serving
from causal_tracing.patching.options.choices import BLOCKS
from explorers import Client, asked, explorer, small_model, talking, toy_model, unknown_model
from forked_driver import FORKS, command
from tiny import tiny_folder

STORE: dict[str, Any] = {
    "clean": "Mary went to the store",
    "corrupt": "John went to the store",
    "answer": " Rome",
    "foil": " Paris",
}


def streamed(client: Client, id: str) -> dict[str, np.ndarray]:
    """The cells as they came, by direction, of the metric that is shown first: [component, layer, position]."""
    data, found = None, {}
    for _, kind, told in client.told(id):
        if kind == "map":
            data = told["data"]
            shape = (len(data["components"]), len(data["layers"]), len(data["pairs"][0]["rows"]))
            found = {name: np.full(shape, np.nan) for name in data["directions"]}
        elif kind == "cells":
            for *at, numbers in told["cells"]:
                for name, value in zip(told["directions"], numbers["logit_diff"][1:], strict=True):
                    found[name][tuple(at)] = np.nan if value is None else value
    assert data is not None
    return found


def test_streamed_cells_are_those_of_a_trace():
    model = small_model()
    with explorer(model) as client:
        found = streamed(client, client.start({"pair": STORE}))
    expected = ct.trace(model, ct.Pair(**STORE)).effects.sel(metric="logit_diff").squeeze("pair")
    for name in ("restoration", "disruption"):
        whole = expected[name].transpose("component", "layer", "position").values
        assert np.isfinite(whole).all()
        assert_allclose(found[name], whole, rtol=0, atol=1e-4)


def test_a_map_fills_and_its_scale_is_there_before_it():
    with explorer(toy_model()) as client:
        told = list(client.told(client.start(asked())))
    kinds = [kind for _, kind, _ in told]
    assert kinds[:2] == ["queued", "started"]
    assert kinds[-2:] == ["view", "done"]
    assert kinds.index("map") < kinds.index("cells")
    assert kinds.count("cells") > 2
    first = told[kinds.index("map")][2]["data"]
    numbers = first["pairs"][0]["metrics"]["logit_diff"]
    assert numbers["scale"] == abs(numbers["total"]) > 0
    assert all(value is None for layers in numbers["restoration"].values() for row in layers for value in row)
    names = {first["statuses"][code] for layers in numbers["status"].values() for row in layers for code in row}
    assert names == {"not_computed_yet"}
    assert "not_computed_yet" not in told[kinds.index("view")][2]["data"]["statuses"]
    done = [each["done"] for _, kind, each in told if kind == "progress"]
    assert done == sorted(done)


def test_typing_again_ends_the_tab_s_trace_within_a_second():
    model = toy_model(0.003)
    with explorer(model) as client:
        first = client.start(asked())
        client.until(first, lambda kind: kind == "cells")
        began = time.monotonic()
        second = client.start(asked("the cat sat", "the dog sat"))
        assert client.last(first)[1] == "cancelled"
        assert time.monotonic() - began < 1
        assert client.last(second)[1] == "done"
        expected = ct.trace(toy_model(), ct.Pair(**asked("the cat sat", "the dog sat")["pair"]))
        view = client.get(f"traces/{second}/view")["document"]["data"]["pairs"][0]["metrics"]["logit_diff"]
        assert view["total"] == pytest.approx(expected.effects.total_effect.sel(metric="logit_diff").item(), rel=1e-5)


def test_a_trace_is_stopped_and_leaves_nothing_on_the_model():
    model = small_model()
    before = model.circumstances
    with explorer(model) as client:
        id = client.start({"pair": STORE})
        assert client.send("DELETE", f"/api/traces/{id}").status_code == 204
        assert client.last(id)[1] in ("cancelled", "done")  # so small a model may have been faster
        assert client.send("DELETE", f"/api/traces/{id}").status_code == 204
    assert model.circumstances == before


def test_tabs_do_not_disturb_each_other():
    model, ids = toy_model(0.0005, layers=8), {}
    with explorer(model) as client:
        for turn in range(3):
            for tab in ("a", "b", "c"):
                word = ("ran", "sat", "far")[turn]
                layers = {"layers": [4, 5, "abc".index(tab)]}
                body = asked(f"the cat {word}", f"the dog {word}", tab=tab, options=layers)
                ids[tab, turn] = client.start(body)
        ends = {key: client.last(id)[1] for key, id in ids.items()}
    assert {ends[tab, 2] for tab in "abc"} == {"done"}
    assert {ends[tab, turn] for tab in "abc" for turn in range(2)} <= {"cancelled", "done"}
    assert [ends[tab, 0] for tab in "bc"] == ["cancelled"] * 2  # they waited for the first tab's


def test_a_stream_is_taken_up_where_it_was_left():
    with explorer(toy_model(0.0005)) as client:
        id = client.start(asked())
        heard = []
        for event in client.told(id):
            heard.append(event)
            if event[1] == "cells":
                break
        heard += list(client.told(id, after=heard[-1][0]))
        assert [number for number, _, _ in heard] == list(range(1, len(heard) + 1))
        assert heard == list(client.told(id))
        assert [job["id"] for job in client.get("traces")] == [id]


def test_the_same_pair_is_traced_once():
    with explorer(toy_model()) as client:
        first = client.start(asked(tab="a"))
        client.last(first)
        assert client.start(asked(tab="b")) == first
        assert client.start(asked(tab="b", options={"layers": [0, 1]})) != first


def test_a_cell_is_looked_into():
    model = small_model()
    with explorer(model) as client:
        id = client.start({"pair": STORE})
        client.last(id)

        def deeper(kind: str) -> list[tuple[int, str, dict]]:
            cell = {"kind": kind, "layer": 2, "position": 4}
            return list(client.told(client.post(f"traces/{id}/deeper", cell, 202)["id"]))

        heads, neurons, pattern = deeper("heads"), deeper("neurons"), deeper("pattern")
    trace = ct.trace(
        model,
        ct.Pair(**STORE),
        components=["resid_post"],
        layers=[2],
        heads=["z"],
        neurons={2: []},
        neuron_positions=[4],
    )
    z = trace.heads.sel(metric="logit_diff", component="z", layer=2, position=4).squeeze("pair")
    rows = np.array([row[1:3] for row in heads[-2][2]["rows"]])
    assert_allclose(rows, np.stack([z.restoration, z.disruption], axis=1), rtol=0, atol=1e-4)
    single = trace.neurons.sel(metric="logit_diff", layer=2, position=4).squeeze(["pair", "component"])
    largest = np.maximum(abs(single.restoration), abs(single.disruption)).values
    assert len(neurons[-2][2]["rows"]) == 20
    assert neurons[-2][2]["rows"][0][0] == int(largest.argmax())
    sides = pattern[-2][2]["sides"]
    for side in sides.values():
        assert_allclose(np.array(side["heads"]).sum(-1), 1, atol=5e-3)
        assert np.array(side["heads"]).shape == (4, 5, 5)
    assert sides["clean"]["heads"] != sides["corrupt"]["heads"]


def test_no_trace_waits_until_the_engines_are_compared_at_its_length(monkeypatch: pytest.MonkeyPatch):
    compared: list[tuple[str, int]] = []
    through = agreement.compare

    def counted(model: Any, components: Any, one: Any, *more: Any, **options: Any) -> Any:
        found = through(model, components, one, *more, **options)
        compared.extend((component, len(one.tokens)) for component in components)
        return found

    monkeypatch.setattr(agreement, "compare", counted)
    long = " gave the drink to the city of"
    pair = {**STORE, "clean": "Mary" + long, "corrupt": "John" + long}
    with explorer(unknown_model()) as client:
        for _ in range(600):
            if ("neurons", 32) in compared:
                break
            time.sleep(0.05)
        assert {name for name, length in compared if length == 32} == {*BLOCKS, "z", "neurons"}
        compared.clear()
        id = client.start({"pair": pair})
        assert client.last(id)[1] == "done"
        cell = {"kind": "heads", "layer": 2, "position": 4}
        assert client.last(client.post(f"traces/{id}/deeper", cell, 202)["id"])[1] == "done"
    assert compared == []


def test_a_preview_shows_tokens_choices_and_where_lengths_part():
    with explorer(small_model()) as client:
        body = {"pair": {"clean": STORE["clean"], "corrupt": STORE["corrupt"]}}
        found = client.post("preview", body)
        assert found["sides"]["clean"]["tokens"] == ["Mary", " went", " to", " the", " store"]
        assert found["answer"] == found["sides"]["clean"]["choices"][0]["token"]
        assert found["foil"] != found["answer"]
        # What the model would say next here has no space in front: it would make one word with the prompt's last.
        joined = client.post(
            "preview",
            {
                "pair": {"clean": STORE["clean"], "corrupt": "John gave the drink to the store"},
                "options": {"align": "suffix"},
            },
        )
        assert joined["sides"]["corrupt"]["choices"][0]["token"] == "to"
        assert joined["foil"].startswith(" ")
        assert joined["error"] is None
        assert (found["differing"], found["error"]) == ([0], None)
        assert client.post("estimate", body)["worlds"] > 100
        body["pair"]["corrupt"] = "Mary went to the city of John"
        parted = client.post("preview", body)
        assert (parted["part"], parted["offers"]) == (4, ["spans", "suffix"])
        assert parted["error"]["type"] == "MisalignedPair"
        assert parted["error"]["field"] == "align"
        assert "Or pair what they share, by a button below: by suffix" in parted["error"]["message"]
        assert "align=" not in parted["error"]["message"]
        unnamed = client.post("preview", body | {"options": {"align": "spans"}})["error"]["message"]
        assert "tokens are paired by their roles, and the clean prompt has no subject. Select the subject" in unnamed
        assert "=" not in unnamed
        assert len(parted["sides"]["corrupt"]["tokens"]) == 7
        half = client.post("preview", {"pair": {"clean": STORE["clean"]}})
        assert half["pairing"] is None
        assert len(half["sides"]["clean"]["choices"]) == 5


def test_tokens_do_not_wait_for_the_model():
    held = threading.Event()
    with explorer(small_model(), limit=6) as client:
        body = {"pair": {"clean": STORE["clean"], "corrupt": STORE["corrupt"]}}
        known = client.post("preview", body)
        client.serving.session.worker.errand(lambda: held.wait(30))  # the model is busy
        found = client.post("tokens", body)
        assert [found["sides"][name]["tokens"] for name in found["sides"]] == [
            known["sides"][name]["tokens"] for name in ("clean", "corrupt")
        ]
        assert (found["pairing"], found["differing"]) == (known["pairing"], known["differing"]) != ([], [])
        body["pair"]["corrupt"] = "Mary went to the city of"
        assert client.post("tokens", body)["part"] == 4
        assert "part" not in client.post("tokens", body | {"options": {"align": "suffix"}})
        assert [*client.post("tokens", {"pair": {"clean": "Mary"}})["sides"]] == ["clean"]
        body["pair"]["corrupt"] = "Mary went to the city of Rome"
        said = client.post("tokens", body, 422)
        assert (said["field"], "--limit-tokens" in said["message"]) == ("corrupt", True)
        held.set()


def test_what_is_not_offered_is_refused_by_name():
    with explorer(toy_model(), limit=4) as client:
        for body, word in (
            ({"pair": {"clean": "a", "model": "/etc"}}, "model"),
            ({"pair": asked()["pair"], "options": {"write": "given"}}, "write"),
            ({"pair": asked()["pair"], "out": "/tmp"}, "out"),
            ([], "object"),
            ({"pair": {"clean": 3}}, "text"),
            ({"pair": {"clean": "a " * 3000}}, "4,000"),
            ({"pair": asked("the cat ran far far")["pair"]}, "limit-tokens"),
            ({"pair": {"corrupt": "the cat"}}, "clean"),
        ):
            said = client.post("traces", body, 422)
            assert word in said["message"]
            assert said["exit"] == 2
        assert client.send("POST", "/api/traces", b"{").status_code == 422
        assert client.send("POST", "/api/traces", b"[" * 30000).status_code == 422
        assert client.send("GET", "/api/traces/nothing").status_code == 404
        assert client.send("GET", "/static/..%2Fserve.py").status_code == 404
        assert client.send("GET", "/healthz", headers={}).text == "ok"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(InvalidPair, 422, 2), (InvalidResults, 409, 2), (OutOfMemory, 503, 3), (UnsupportedModel, 501, 4)],
)
def test_every_kind_of_error_has_its_status(error, status, code):
    with explorer(toy_model()) as client:

        def raising(asked):
            raise error("and what to do")

        client.serving.session.trace = raising
        said = client.post("traces", asked(), status)
    assert (said["type"], said["message"], said["exit"]) == (error.__name__, "and what to do", code)


def test_a_trace_is_kept_and_taken_away(tmp_path: Path):
    with explorer(small_model(), out=tmp_path) as client:
        id = client.start({"pair": STORE})
        client.last(id)
        folder = Path(client.post(f"traces/{id}/save", {"name": "../My store!"}, 201)["folder"])
        assert folder == tmp_path / "my-store"
        assert "exists already" in client.post(f"traces/{id}/save", {"name": "my store"}, 409)["message"]
        assert "another name" in client.post(f"traces/{id}/save", {"name": "../.."}, 422)["message"]
        page = client.send("GET", f"/api/traces/{id}/page").text
        table = client.send("GET", f"/api/traces/{id}/effects.csv").text
        columns = client.send("GET", f"/api/traces/{id}/effects.parquet").content
        assert client.send("GET", f"/api/traces/{id}/passwd").status_code == 404
        shown = client.get(f"traces/{id}/view")["document"]
    trace = ct.open_trace(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == page == trace.to_html()
    assert len(table.splitlines()) == 1 + len(trace.to_dataframe())
    assert columns[:4] == b"PAR1"
    scope: dict[str, Any] = {"model": small_model()}
    exec(shown["python"], scope)
    assert_allclose(scope["trace"].effects.restoration, trace.effects.restoration, atol=1e-5)


def test_saved_traces_are_read_without_a_model(tmp_path: Path):
    trace = ct.trace(toy_model(), ct.Pair(**asked()["pair"]))
    trace.save(tmp_path / "kept")
    with Serving(Saved([tmp_path / "kept"])) as serving, talking(serving) as client:
        about = client.get("model")
        assert not about["live"]
        assert "--model" in about["why"]
        (listed,) = client.get("traces")
        assert (listed["label"], listed["state"]) == ("kept", "done")
        assert [kind for _, kind, _ in client.told(listed["id"])] == ["view", "done"]
        for path in ("traces", "tokens"):
            assert "--model" in client.post(path, asked(), 422)["message"]
        assert client.send("GET", f"/api/traces/{listed['id']}/page").status_code == 200


def test_a_port_that_is_taken_and_an_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    with explorer(toy_model()) as client, pytest.raises(MachineError, match="--port"):
        Serving(Saved([]), Address(port=client.serving.port))
    with pytest.raises(InvalidOption):
        ct.explore(toy_model(), open=False, limit_tokens=0)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MachineError, match=r"causal-tracing\[explore\]"):
        Serving(Saved([]))


# A shell that starts something in the background has it ignore Ctrl-C; SIGTERM must end it all the same.
@pytest.mark.parametrize(
    ("how", "ctrl_c"), [(signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_IGN)]
)
def test_it_ends_with_a_trace_under_way(
    tmp_path: Path, how: signal.Signals, ctrl_c: Any, request: pytest.FixtureRequest
):
    tiny_folder(tmp_path)
    explore = (tmp_path, "explore", "--model", str(tmp_path), "--no-open")
    running = FORKS.Process(target=command, args=explore, kwargs={"ctrl_c": ctrl_c})
    running.start()
    request.addfinalizer(running.kill)
    assert running.pid is not None
    shown = tmp_path / "stdout"
    while running.is_alive() and not (shown.exists() and shown.read_text().endswith("\n")):
        time.sleep(0.02)
    (line,) = shown.read_text().splitlines()
    address, _, token = line.partition("/#token=")
    client = Client(int(address.rpartition(":")[2]), token)
    long = " gave the drink to the city of" * 8
    with client.http:
        id = client.start({"pair": {name: text + long for name, text in (("clean", "Mary"), ("corrupt", "John"))}})
        with closing(client.told(id)) as told:
            next(each for each in told if each[1] == "cells")
            os.kill(running.pid, how)
            began = time.monotonic()
            rest: list[str] = []
            with suppress(httpx.RemoteProtocolError):  # the end may cut an answer off
                rest += (kind for _, kind, _ in told)  # a page reads what comes
            running.join(60)
            assert time.monotonic() - began < 3
    assert "done" not in rest
    assert (running.exitcode, shown.read_text()) == (0, f"{line}\n")
    err = (tmp_path / "stderr").read_text()
    assert "Traceback" not in err
    assert token not in err
