"""Starts the explorer, and stays until it is interrupted."""

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal_tracing import validation
from causal_tracing.explorer import LIMIT_TOKENS
from causal_tracing.explorer.serve import LOCAL, Address, Serving

if TYPE_CHECKING:
    from causal_tracing.models.model import Model


def explore(
    model: "Model",
    *,
    port: int = 0,
    open: bool = True,
    out: str | Path = ".",
    limit_tokens: int = LIMIT_TOKENS,
    host: str = "127.0.0.1",
    allow_hosts: Sequence[str] = (),
) -> None:
    """Opens a page on this machine that traces what is typed into it; stays until it is interrupted (Ctrl-C).

    The address is printed: whoever has the whole of it may use the page. Needs the extra [explore].

    model: from `load`.
    port: where to listen (0: any free port).
    open: open the page in a browser.
    out: the folder in which the page's "save" makes folders.
    limit_tokens: how many tokens a prompt may have.
    host: other than this machine's own address only together with
    allow_hosts: the names by which the page may be reached, such as that of a proxy.

    Raises InvalidOption, MachineError (the port is taken, or the extra is missing).

    Example:
        ct.explore(ct.load("demo"))
    """
    from causal_tracing.explorer.live import Live
    from causal_tracing.models.model import require_model

    require_model(model)
    validation.whole("limit_tokens=", limit_tokens, least=1)
    validation.whole("port=", port, least=0, most=65535)
    validation.texts("allow_hosts=", allow_hosts)
    address = Address(host=host, port=port, allowed=tuple(allow_hosts))
    stay(Live(model, out=Path(out), limit=limit_tokens), address, open=open)


def stay(session: Any, address: Address, *, open: bool) -> None:
    """Serves a session until it is interrupted; the address alone goes to stdout."""
    with Serving(session, address) as serving:
        if address.host not in LOCAL:
            print(f"warning: {address.host} can be reached from other machines.", file=sys.stderr, flush=True)
        print(serving.url, flush=True)
        print("Ctrl-C ends it.", file=sys.stderr, flush=True)
        if open:
            webbrowser.open(serving.url)
        serving.wait()
