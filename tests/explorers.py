"""Explorers for tests: slow models whose work can be watched, and a client that speaks as the page does."""

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from causal_tracing.engine.checks.check import accept
from causal_tracing.explorer.live import Live
from causal_tracing.explorer.serve import Serving
from causal_tracing.interventions.edits import Run
from causal_tracing.models.model import Model
from causal_tracing.testing import FakeBackend, LinearToy, fake_model
from tiny import tiny_model, tiny_tokenizer

WORDS = ("the", "cat", "dog", "ran", "sat", "far")
SLOW_LAYERS = 40
Event = tuple[int, str, dict[str, Any]]


def asked(clean: str = "the cat ran", corrupt: str = "the dog ran", **more: Any) -> dict[str, Any]:
    """A request of the page, of the words above."""
    tab = more.pop("tab", "one")
    return {"pair": {"clean": clean, "corrupt": corrupt, "answer": " cat", "foil": " dog"}, "tab": tab, **more}


def toy_model(seconds: float = 0.0, words: Sequence[str] = WORDS, layers: int = SLOW_LAYERS) -> Model:
    """A linear toy, each of whose runs takes so long."""
    toy = LinearToy(len(words), num_layers=layers)

    def answers(run: Run) -> Any:
        time.sleep(seconds)
        return toy(run)

    return fake_model(words, FakeBackend(answers, activations=toy.activations, num_layers=layers))


@cache
def small_model() -> Model:
    """A tiny random llama with real heads and neurons, which no test changes."""
    return unknown_model()


def unknown_model() -> Model:
    """Another one, of which nothing is known but what accepting it says."""
    return accept(tiny_model(), tiny_tokenizer(), name="tiny")


class Client:
    """What the page does, without a page."""

    serving: Serving

    def __init__(self, port: int, token: str) -> None:
        self.token = token
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> httpx.Response:
        """One request, with the token unless `headers` say otherwise."""
        given = {"Authorization": f"Bearer {self.token}"} if headers is None else headers
        if body is not None:
            given = given | {"Content-Type": "application/json"}
        text = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.request(method, path, content=text, headers=given)

    def get(self, path: str) -> Any:
        """What stands under /api, which must be there."""
        answer = self.send("GET", f"/api/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        """What comes of a request, which must have this status."""
        answer = self.send("POST", f"/api/{path}", body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def start(self, body: Any) -> str:
        """Begins a trace."""
        return self.post("traces", body, 202)["id"]

    def told(self, id: str, after: int = 0) -> Generator[Event, None, None]:
        """What is told of a job, as it comes."""
        headers = {"Authorization": f"Bearer {self.token}", "Last-Event-ID": str(after)}
        fields: dict[str, str] = {}
        with self.http.stream("GET", f"/api/traces/{id}/events", headers=headers) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name:
                    fields[name] = value
                elif "event" in fields:
                    yield int(fields["id"]), fields["event"], json.loads(fields["data"])
                    fields = {}

    def until(self, id: str, wanted: Callable[[str], bool]) -> Event:
        """The first event of which this is true."""
        with closing(self.told(id)) as told:
            return next(each for each in told if wanted(each[1]))

    def last(self, id: str) -> Event:
        """The event with which a job ends."""
        return list(self.told(id))[-1]


@contextmanager
def talking(serving: Serving) -> Iterator[Client]:
    """A client of a running explorer; it leaves no connection behind."""
    client = Client(serving.port, serving.token)
    with client.http:
        yield client


@contextmanager
def explorer(model: Model, out: Path | None = None, limit: int = 64) -> Iterator[Client]:
    """A running explorer of a model."""
    with Serving(Live(model, out=out or Path(), limit=limit)) as serving, talking(serving) as client:
        client.serving = serving
        yield client
