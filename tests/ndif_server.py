"""A server on loopback that speaks NDIF's plain HTTP and has one tiny model. It knows nothing of the package it serves.

python ndif_server.py FOLDER SOCKET        the number of a socket that listens; what it does next is said by POST /mode
"""

import io
import json
import socket
import sys
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import nnsight
import torch
import zstandard
from nnsight.schema.request import RequestModel
from nnsight.tracing.tracer import dec, inc
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENIZER = AutoTokenizer.from_pretrained(sys.argv[1])
NETWORK = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
MODEL = nnsight.TransformersModel(NETWORK, tokenizer=TOKENIZER, task="text-generation")
STATE: dict[str, Any] = {"mode": "ok", "jobs": 0, "asked": 0, "polls": 0, "posts": 0, "refused": 0, "keys": []}
RESULTS: dict[str, bytes] = {}


def answered(blob: bytes) -> bytes:
    """What a request saves, as a server sends it."""
    tracer = RequestModel.deserialize(blob, MODEL._remoteable_persistent_objects(), compress=True)
    inc()  # as the end of a trace does around its backend
    try:
        with torch.no_grad():
            tracer.execute(tracer.info.code)
        saved = io.BytesIO()
        torch.save({"found": tracer.info.frame.f_locals["found"]}, saved)
    finally:
        dec()
    return zstandard.ZstdCompressor().compress(saved.getvalue())


def parts_of(kind: str, body: bytes) -> dict[str, bytes]:
    """The fields of a form."""
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    found: dict[str, Any] = {}
    for part in message.iter_parts():
        found[str(part.get_param("name", header="content-disposition"))] = part.get_payload(decode=True)
    return found


class Handler(BaseHTTPRequestHandler):
    """One request after the other."""

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/mode":
            STATE.update(json.loads(body))
            if STATE.pop("forget", False):
                RESULTS.clear()
            return self.say(200, STATE)
        if STATE["mode"] == "422":
            return self.say(422, {"detail": "this model is not deployed"})
        STATE["posts"] += 1
        if STATE["mode"] == "busy" and STATE["posts"] % 2:
            STATE["refused"] += 1
            return self.say(503, {"detail": "try again"})
        parts = parts_of(self.headers["Content-Type"], body)
        STATE["jobs"] += 1
        STATE["asked"] = 0
        STATE["keys"].append(json.loads(parts["data"])["model_key"])
        job = f"job-{STATE['jobs']}"
        if STATE["mode"] != "failed":
            RESULTS[job] = answered(parts["blob"])
        return self.say(200, {"id": job, "status": "RECEIVED"})

    def do_GET(self) -> None:
        job, mode = self.path.rsplit("/", 1)[1], STATE["mode"]
        if self.path.startswith("/result/"):
            whole = RESULTS[job]
            return self.send(200, whole[: len(whole) // 2] if mode == "cut" else whole)
        STATE["asked"] += 1
        STATE["polls"] += 1
        if mode == "failed":
            return self.say(200, {"id": job, "status": "ERROR", "description": "CUDA out of memory on the server"})
        if mode == "lost" or job not in RESULTS:
            return self.say(404, {"detail": "no such job"})
        if mode == "forever" or (mode == "slow" and STATE["asked"] < 4):
            return self.say(200, {"id": job, "status": "QUEUED", "description": "position 3"})
        return self.say(200, {"id": job, "status": "COMPLETED", "data": f"http://{self.headers['Host']}/result/{job}"})

    def say(self, code: int, content: object) -> None:
        self.send(code, json.dumps(content).encode())

    def send(self, code: int, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    listening = socket.socket(fileno=int(sys.argv[2]))
    server = ThreadingHTTPServer(listening.getsockname(), Handler, bind_and_activate=False)
    server.socket = listening
    server.serve_forever()
