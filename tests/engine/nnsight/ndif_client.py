"""What a client meets at a server: each case as a line of JSON. A process of its own: sources are sent as they stand.

ndif_client.py FOLDER TESTS PORT PROCESS        the server's, which is killed at the end
"""

import json
import os
import sys
import urllib.request
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, sys.argv[2])
FOLDER, PORT, SERVER = sys.argv[1], sys.argv[3], psutil.Process(int(sys.argv[4]))
os.environ.pop("NDIF_API_KEY", None)
os.environ["NDIF_HOST"] = HOST = f"http://127.0.0.1:{PORT}"

import nnsight  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

import causal_tracing as ct  # noqa: E402
from causal_tracing.engine.nnsight import ndif  # noqa: E402

setattr(nnsight.TransformersModel, "_remoteable_model_key", lambda _: json.dumps({"repo_id": "tiny"}))  # noqa: B010
PAIRS = [
    ct.Pair(clean=f"the city of Rome {n}", corrupt=f"the city of Paris {n}", answer=" Rome", foil=" Paris", id=f"p{n}")
    for n in range(3)
]
ASKED: dict[str, Any] = {"components": ["resid_post", "mlp_out"], "spot_checks": 1, "progress": False}
RUN = Path(FOLDER) / "run"


def state(**changed: Any) -> dict[str, Any]:
    """The server's state, changed."""
    request = urllib.request.Request(f"{HOST}/mode", json.dumps(changed).encode(), method="POST")
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def said(case: str, **found: Any) -> None:
    print(json.dumps({"case": case, **found}), flush=True)


def refused(case: str) -> None:
    """What is said where the server behaves as its state has it."""
    try:
        ct.trace(model, PAIRS[0], **ASKED)
    except ct.CausalTracingError as error:
        said(case, error=type(error).__name__, text=str(error).replace(HOST, "HOST"))


class Killed(BaseException):
    """As a kill ends a process: nothing is tidied up."""


def killed_while_it_waits() -> None:
    """A run whose first job in the folder is never collected."""
    real_pause, real_note = ndif.time.sleep, ndif.Jobs.note

    def pause(_: float) -> None:
        raise Killed

    def note(self: ndif.Jobs, asked: str, job: str) -> None:
        real_note(self, asked, job)
        if self.file is not None:  # what comes before the folder looks at the prompts
            state(mode="forever")
            setattr(ndif.time, "sleep", pause)  # noqa: B010

    setattr(ndif.Jobs, "note", note)  # noqa: B010
    with suppress(Killed):
        ct.run(model, PAIRS, RUN, **ASKED)
    setattr(ndif.time, "sleep", real_pause)  # noqa: B010
    setattr(ndif.Jobs, "note", real_note)  # noqa: B010
    state(mode="ok")


def noted() -> list[dict[str, str]]:
    return [json.loads(line) for line in (RUN / "jobs.jsonl").read_text().splitlines()]


wrapped = nnsight.TransformersModel(FOLDER, tokenizer=AutoTokenizer.from_pretrained(FOLDER), task="text-generation")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = ct.load(wrapped, remote=True)
notes = [str(each.message).replace(HOST, "HOST") for each in caught if isinstance(each.message, ct.errors.EngineNote)]
meta = all(parameter.is_meta for parameter in model.network.parameters())
said("load", notes=notes, meta=meta, components=model.backend.describe().components, keys=sorted({*state()["keys"]}))

plain = ct.load(FOLDER, progress=False)
one = ct.trace(plain, PAIRS[0], metrics="all", heads=["z"], neurons={1: [3, 5]}, engine="replay", **ASKED)
other = ct.trace(model, PAIRS[0], metrics="all", heads=["z"], neurons={1: [3, 5]}, **ASKED)
maps = [(one.effects, other.effects), (one.heads, other.heads), (one.neurons, other.neurons)]
apart = [abs(a.restoration - b.restoration).max().item() for a, b in maps]
moved = [abs(b.restoration).max().item() for _, b in maps]
said("trace", apart=apart, moved=moved, engine=other.provenance["engine"], command=other.provenance["command"])

ndif.FIRST_PAUSE, ndif.LONGEST_PAUSE, ndif.UNKNOWN, ndif.WAIT = 0.05, 0.1, 0.3, 0.5
for mode in ("422", "failed", "cut", "lost", "forever"):
    state(mode=mode)
    refused(mode)
ndif.WAIT = 60.0
state(mode="ok")
plainly = ct.trace(model, PAIRS[0], **ASKED).effects.restoration
for mode in ("slow", "busy"):
    before = state(mode=mode)
    same = ct.trace(model, PAIRS[0], **ASKED).effects.restoration.equals(plainly)
    said(mode, same=same, polls=state()["polls"] - before["polls"], refused=state()["refused"] - before["refused"])

state(mode="ok")
whole = ct.run(model, PAIRS, RUN.with_name("whole"), **ASKED).effects.restoration
killed_while_it_waits()
(waiting,) = noted()
resumed = ct.run(model, PAIRS, RUN, **ASKED).effects.restoration
times = [each["asked"] for each in noted()].count(waiting["asked"])
said("collected", times=times, jobs=len(noted()), same=resumed.equals(whole))

(RUN / "results.sqlite").unlink()
with (RUN / "jobs.jsonl").open("a") as stream:
    stream.write('{"asked": "cut sho')
state(mode="ok", forget=True)
again = ct.run(model, PAIRS, RUN, **ASKED).effects.restoration
said("forgotten", same=again.equals(whole))

SERVER.kill()
SERVER.wait(10)
refused("down")
