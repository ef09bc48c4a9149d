"""The server: one address on this machine, a thread for what is asked, one for the work, and an end that is clean.

1. The socket is taken before anything else: a port that is in use is said at once.
2. The server runs in a thread of its own, so that it works in a notebook too, whose main thread has a loop already.
3. At the end streams return by themselves, then the work is stopped and waited for.
"""

import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from causal_tracing.errors import InvalidOption, MachineError

LOCAL = ("127.0.0.1", "localhost", "::1")
GRACE = 2  # seconds that open answers have at the end
MISSING = "The explorer needs starlette and uvicorn: pip install 'causal-tracing[explore]'."


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the explorer listens: on this machine alone, unless other names are allowed too."""

    host: str = "127.0.0.1"
    port: int = 0
    allowed: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.host not in LOCAL and not self.allowed:
            raise InvalidOption(
                f"--host {self.host} can be reached from other machines. Say too by which name, with --allow-host NAME."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """What the address may be called."""
        return (*LOCAL, *self.allowed)


class Serving:
    """A running explorer, as a context: `url` opens it. Raises MachineError where it cannot listen."""

    def __init__(self, session: Any, address: Address | None = None) -> None:
        try:
            import uvicorn

            from causal_tracing.explorer.app import Explorer
            from causal_tracing.explorer.guard import Guard, hosts_of
        except ModuleNotFoundError as error:
            # Something else that is missing is not cured by the extra.
            if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
                raise
            raise MachineError(MISSING) from None
        self.session, self.address = session, address or Address()
        self.token = secrets.token_urlsafe(16)
        self._socket = _bound(self.address)
        self.port: int = self._socket.getsockname()[1]
        explorer = Explorer(session=session, closing=lambda: self._server.should_exit)
        hosts = hosts_of(self.address.names, self.port) | (frozenset(self.address.allowed))
        config = uvicorn.Config(
            Guard(explorer.application(), hosts={name.lower() for name in hosts}, token=self.token),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            http="h11",
            loop="asyncio",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="causal-tracing server", daemon=True)

    @property
    def url(self) -> str:
        """What to open. The token stands behind #, which no browser sends to a server."""
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        return f"http://{host}:{self.port}/#token={self.token}"

    def __enter__(self) -> "Serving":
        self.session.start()
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Until somebody interrupts (Ctrl-C), which is the usual end and no error."""
        with suppress(KeyboardInterrupt):
            while self._thread.is_alive():
                self._thread.join(0.2)

    def close(self) -> None:
        """Stops the work, ends the answers, and waits for both."""
        self._server.should_exit = True
        self.session.worker.halt()
        if self._thread.is_alive():
            self._thread.join()
        self.session.worker.close()
        self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


def require_free(address: Address) -> None:
    """Raises MachineError where nothing can listen at the address: asked before a model is loaded for it."""
    _bound(address).close()


def _bound(address: Address) -> socket.socket:
    kind = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    taken = socket.socket(kind, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((address.host, address.port))
        return taken
    except (OSError, OverflowError) as error:
        taken.close()
        raise MachineError(
            f"Nothing can listen at {address.host}:{address.port}: {str(error).rstrip('.')}. Give another --port, or "
            "leave it out for one that is free."
        ) from None
