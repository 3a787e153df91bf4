"""The port, the address with its token, and the end.

The server listens on 127.0.0.1 only: other machines cannot reach it.
"""

import asyncio
import errno
import logging
import os
import secrets
import signal
import socket
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from ..cli.signals import leave
from ..errors import UsageError
from ..text.stderr import note
from .answers import Lab
from .app import lab_app

HOST = "127.0.0.1"
TRIES = 100  # ports after the first


def free_port(port: int) -> socket.socket:
    """A socket that listens on this port or, if it is taken, on the next free one. Port 0 is any free one.

    Raises UsageError if there is none, or this user may not open it.
    """
    for number in range(port, min(port + TRIES, 2**16)):
        try:
            return socket.create_server((HOST, number))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UsageError(f"--port: {HOST}:{number} cannot be opened: {error.strerror}") from error
    raise UsageError(f"--port: {port} and the next ports are all taken; --port 0 takes any free port")


class Server(uvicorn.Server):
    """A server that prints its address once it listens, and leaves Ctrl-C to `serve`."""

    def __init__(self, app: ASGIApp, address: str, browser: bool) -> None:
        quiet: Any = {"log_config": None, "log_level": "error", "access_log": False, "server_header": False}
        super().__init__(uvicorn.Config(app, lifespan="off", ws="none", proxy_headers=False, **quiet))
        self.address, self.browser = address, browser

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and print the address."""
        await super().startup(sockets)
        note(f"npllm: the lab is at {self.address}")
        note("npllm: only this machine can open it, and the address is its key; Ctrl-C ends it")
        if self.browser:
            Thread(target=open_browser, args=[self.address], daemon=True).start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: uvicorn would wait for the answers in progress."""
        yield


def open_browser(address: str) -> None:
    """Open the address, or say that there is no browser."""
    opened = False
    with suppress(webbrowser.Error, OSError):
        opened = webbrowser.open(address)
    if not opened:
        note("npllm: no browser was found to open; copy the address into one")


def ends_at_once() -> None:
    """From here on, Ctrl-C ends the process, unless it is ignored. There is nothing to keep."""

    def end(*_: object) -> None:
        with suppress(OSError):
            os.write(2, b"\n")  # the prompt of the shell begins on a line of its own
        leave()

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def serve(lab: Lab, port: int, browser: bool) -> None:
    """Serve the lab until Ctrl-C, which ends the process with exit code 130."""
    with free_port(port) as listening:
        taken = listening.getsockname()[1]
        if port not in (0, taken):
            note(f"npllm: port {port} is taken; using {taken}")
        token = secrets.token_urlsafe(24)
        app = lab_app(lab, token, taken)
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of a page closed in the middle of an answer
        ends_at_once()
        asyncio.run(Server(app, f"http://{HOST}:{taken}/?token={token}", browser).serve([listening]))
