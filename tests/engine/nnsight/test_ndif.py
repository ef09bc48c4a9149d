"""NDIF's plain HTTP, against a server on loopback that runs what it is sent and knows nothing of this package."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from forked_driver import FORKS, executed, listen
from tiny import tiny_folder

pytest.importorskip("nnsight")
CLOSE = 1e-5
COMPONENTS = ["resid_pre", "attn_out", "mlp_out", "resid_post", "z", "neurons"]


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a client met, by case."""
    folder, tests = tmp_path_factory.mktemp("model"), Path(__file__).parents[2]
    tiny_folder(folder)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = FORKS.Process(target=listen, args=(tests / "ndif_server.py", folder, listening))
        server.start()
    script = Path(__file__).with_name("ndif_client.py")
    done = executed(script, str(folder), str(tests), str(port), str(server.pid), timeout=400)
    server.kill()
    server.join()
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["case"]: line for line in lines}


def test_a_model_is_known_without_its_weights(met: dict[str, dict[str, Any]]):
    assert met["load"]["meta"]
    assert met["load"]["components"] == COMPONENTS
    assert met["load"]["keys"] == ['nnsight.modeling.transformers.TransformersModel:{"repo_id": "tiny"}']
    assert met["load"]["notes"] == [
        "Prompts, answers and what is patched are sent to HOST, and what it sends back is unpickled by nnsight, which "
        "can run code: use a host that you trust."
    ]


def test_a_trace_there_is_the_trace_here(met: dict[str, dict[str, Any]]):
    assert max(met["trace"]["apart"]) < CLOSE
    assert min(met["trace"]["moved"]) > 1.0  # ranks among them
    assert met["trace"]["engine"] == "nnsight (NDIF)"
    assert "--remote" in met["trace"]["command"]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("422", "HOST does not take a job: Failed to send request: this model is not deployed"),
        ("failed", "HOST does not give the result of job JOB: CUDA out of memory on the server"),
        (
            "cut",
            "HOST does not give the result of job JOB whole: what comes is cut off or damaged (ZstdError: "
            "decompression error: did not decompress full frame). Run the same command again.",
        ),
        ("lost", "HOST took job JOB and does not know it any more. Run the command again."),
        (
            "forever",
            "Job JOB at HOST is still QUEUED after 0 minutes. Run the same command again: it waits for the same job.",
        ),
        ("down", "HOST does not take a job: Failed to send request: [Errno 111] Connection refused"),
    ],
)
def test_what_goes_wrong_is_one_clear_error(met: dict[str, dict[str, Any]], case: str, said: str):
    assert met[case]["error"] == ("JobFailed" if case == "failed" else "MachineError")
    words = ["JOB" if word.startswith("job-") else word for word in met[case]["text"].replace(":", " :").split()]
    assert " ".join(words).replace(" :", ":") == said


def test_a_slow_queue_is_waited_for_and_a_busy_server_asked_again(met: dict[str, dict[str, Any]]):
    assert met["slow"]["same"]
    assert met["slow"]["polls"] >= 4
    assert met["busy"]["same"]
    assert met["busy"]["refused"] >= 1


def test_who_was_killed_collects_and_does_not_ask_again(met: dict[str, dict[str, Any]]):
    assert met["collected"] == {"case": "collected", "times": 1, "jobs": met["collected"]["jobs"], "same": True}
    assert met["collected"]["jobs"] > 1


def test_what_the_server_forgot_is_asked_for_again(met: dict[str, dict[str, Any]]):
    assert met["forgotten"]["same"]
