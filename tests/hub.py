"""A small server that plays the Hugging Face hub on this machine, with faults on request.

The hub's client reads HF_ENDPOINT and its timeouts when it is imported: use `open_in_a_new_process`.
"""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

Fault = Literal[
    "none",
    "gone",  # no such repository
    "private",  # 401
    "gated",  # 403
    "down",  # 503
    "stalls",  # takes the request and never answers
    "stalls inside",  # stops in the middle of the weights
    "breaks off",  # closes the connection in the middle of the weights, every time
    "breaks off once",  # the first time only; what comes after it can be fetched
]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {
    "gone": (404, "RepoNotFound"),
    "private": (401, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "down": (503, ""),
}
WEIGHTS = "model.safetensors"
LISTING = re.compile(r"/api/models/[\w.-]+/[\w.-]+/tree/")
RESOLVE = re.compile(r"/(?P<repository>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass(slots=True, kw_only=True)
class Repository:
    folder: Path
    fault: Fault = "none"
    revisions: tuple[str, ...] = ("main",)


@dataclass(slots=True, kw_only=True)
class Hub:
    """The repositories by name, and what was asked for: (method, path, range)."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    endpoint: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass

    def answer(self, *, body: bool) -> None:
        self.hub.asked.append((self.command, self.path, self.headers.get("Range")))
        if LISTING.match(self.path):
            return self.refuse(404, "EntryNotFound")  # folders of chat templates, which no repository here has
        asked = RESOLVE.fullmatch(self.path)
        repository = self.hub.repositories.get(asked["repository"]) if asked else None
        if asked is None or repository is None:
            return self.refuse(404, "RepoNotFound")
        if repository.fault == "stalls":
            self.hub.closing.wait()
            return None
        if repository.fault in REFUSALS:
            return self.refuse(*REFUSALS[repository.fault])
        if asked["revision"] not in (*repository.revisions, COMMIT):
            return self.refuse(404, "RevisionNotFound")
        file = repository.folder / asked["file"]
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        return self.send(repository, file, body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, repository: Repository, file: Path, body: bool) -> None:
        content = file.read_bytes()
        begun = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(begun[1]) if begun else 0
        self.send_response(206 if begun else 200)
        if begun:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body and file.name == WEIGHTS and repository.fault != "none":
            self.fail(repository, content[start:])
        elif body:
            self.wfile.write(content[start:])

    def fail(self, repository: Repository, content: bytes) -> None:
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        if repository.fault == "stalls inside":
            self.hub.closing.wait()
        if repository.fault == "breaks off once":
            repository.fault = "none"
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub without repositories, listening on the loopback interface."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.block_on_close = False
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


OPEN = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, {tests!r})
from causal_tracing.errors import CausalTracingError
from causal_tracing.models.open import open_model
from tiny import logits

def seen(job):
    begun = time.monotonic()
    try:
        opened = open_model(*job["names"], **job["options"])
    except CausalTracingError as error:
        return {{"error": type(error).__name__, "message": str(error), "seconds": time.monotonic() - begun}}
    network = opened.network
    return {{
        "name": opened.name, "source": opened.source, "logits": logits(network)[0, -1].tolist(),
        "dtypes": sorted({{str(one.dtype) for one in network.parameters()}}),
        "grads": any(one.requires_grad for one in network.parameters()),
        "training": any(module.training for module in network.modules()),
        "tokens": opened.tokenizer("the city of").input_ids, "seconds": time.monotonic() - begun,
    }}

jobs = json.loads(sys.argv[1])
with ThreadPoolExecutor({threads}) as pool:
    print(json.dumps(list(pool.map(seen, jobs))))
"""


def open_in_a_new_process(
    hub: Hub, home: Path, jobs: Sequence[tuple[str, dict[str, Any]]], *, at_once: bool = False, **variables: str
) -> "subprocess.Popen[str]":
    """Begins a process that does `open_model(name, **options)`, job by job; `what_came` of it is asked later."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "OMP_NUM_THREADS": "1",  # as in the tests: logits are compared to the bit
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **variables,
    }
    code = OPEN.format(tests=str(Path(__file__).parent), threads=len(jobs) if at_once else 1)
    asked = json.dumps([{"names": [name], "options": options} for name, options in jobs])
    command = [sys.executable, "-c", code, asked]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=home.parent)


def what_came(process: "subprocess.Popen[str]") -> tuple[list[dict[str, Any]], str]:
    """What each job gave or raised, and what stood on stderr."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out), err  # one document: nothing else was written to stdout
