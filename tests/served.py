"""The lab of a tiny model on a free port, and a client for it."""

import asyncio
import base64
import http.client
import json
import threading
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from checkpoints import byte_tokenizer
from models import random_weights, tiny_config

from npllm.lm import LM

TOKEN = "a-token"


def tiny_lm(**keys) -> LM:
    """A model of 3 layers with 4 heads, and the tests' byte-level tokenizer."""
    config = tiny_config(
        **{"vocab_size": len(byte_tokenizer()), "max_position_embeddings": 128, "num_hidden_layers": 3} | keys
    )
    return LM(config, random_weights(config), byte_tokenizer(), {})


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


class Client(NamedTuple):
    """Sends requests as the page does."""

    port: int

    def headers(self, client: str = "tab") -> dict[str, str]:
        own = f"127.0.0.1:{self.port}"
        return {
            "Host": own,
            "Origin": f"http://{own}",
            "Content-Type": "application/json",
            "X-Npllm-Token": TOKEN,
            "X-Npllm-Client": client,
        }

    def send(self, method: str, path: str, headers: dict[str, str], body: Any = None) -> Answer:
        """Any request, with only these headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
            for name, value in headers.items():
                connection.putheader(name, value)
            if method == "POST" and "Content-Length" not in headers:
                connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def ask(self, name: str, client: str = "tab", **body) -> Answer:
        """A call of the page."""
        return self.send("POST", f"/api/{name}", self.headers(client), body)

    def begin(self, name: str, client: str = "tab", headers=None, **body) -> http.client.HTTPResponse:
        """A call of the page whose answer is read line by line; to close it closes the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = (headers or self.headers(client)) | {"Connection": "close"}
        connection.request("POST", f"/api/{name}", json.dumps(body), headers)
        return connection.getresponse()


@contextmanager
def served(lab):
    """A client of this lab, served by a thread."""
    from npllm.lab.app import lab_app
    from npllm.lab.server import Server, free_port

    with free_port(0) as listening:
        port = listening.getsockname()[1]
        server = Server(lab_app(lab, TOKEN, port), "", False)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        try:
            yield Client(port)
        finally:
            server.should_exit = server.force_exit = True
            thread.join(20)


def numbers(text: str, dtype: str) -> np.ndarray:
    """An array of an answer, flat."""
    return np.frombuffer(base64.b64decode(text), dtype)
