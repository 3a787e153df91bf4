"""The lab as a web application: who may ask, what they may send, and the answers as JSON.

Other programs on the machine, and any page open in the browser, can reach a port of 127.0.0.1. So every call needs the
token in the lab's address, the Host header must name this machine (a foreign name that resolves to 127.0.0.1 would make
another page one of ours: DNS rebinding), and an Origin header, which browsers add to every POST, must be our own.
"""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import NotEnoughMemoryError, NpllmError, UsageError
from ..inspect.summary import finite
from ..text.one_line import one_line
from .answers import ANSWERS, STREAMS, Lab
from .worker import Cancelled, Item, Job, Worker

LARGEST = 2**20  # bytes of a request
HEADERS = [
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]  # of every answer


class Refused(Exception):
    """A request that gets only a status and a one-line error."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def lab_app(lab: Lab, token: str, port: int) -> ASGIApp:
    """The application. Every request passes `Guard` first.

    Parameters
    ----------
    lab : the model and what was computed so far
    token : the secret that every request must carry
    port : of the server, which is part of Host and Origin
    """
    worker = Worker()

    async def page(request: Request) -> Response:
        html, policy = lab.page()
        return HTMLResponse(html, headers={"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"})

    async def icon(request: Request) -> Response:
        return Response(status_code=204)  # a browser asks for it; a 404 would be an error in its console

    async def api(request: Request) -> Response:
        name, client = request.path_params["name"], request.headers.get("x-npllm-client", "")
        try:
            if name not in ANSWERS:
                raise Refused(404, f"/api/{name}: there is no such call")
            if not re.fullmatch(r"[\w-]{0,64}", client, re.ASCII):
                raise Refused(400, "X-Npllm-Client: expected at most 64 letters, digits, - and _")
            asked = await body(request)
            items = answer(worker, request, (client, name), lambda tap: ANSWERS[name](lab, asked, tap))
            first = await anext(items)
            if name in STREAMS:
                return StreamingResponse(lines(first, items), media_type="application/x-ndjson")
            await items.aclose()
            return Response(line(first), media_type="application/json")
        except Exception as error:  # noqa: BLE001 - whatever it is, the answer is a status and a line
            return plain_error(*status_and_line(error))

    routes = [
        Route("/", page, methods=["GET"]),
        Route("/favicon.ico", icon, methods=["GET"]),
        Route("/api/{name}", api, methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: http_error}), token, port)


class Guard:
    """Refuses requests that are not from our own page, and adds the headers that every answer has."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self.app, self.token = app, token.encode()
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application. The server hands it nothing but HTTP requests."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        try:
            self.check(Request(scope))
        except Refused as error:
            return await plain_error(error.status, str(error))(scope, receive, send_with_headers)
        await self.app(scope, receive, send_with_headers)

    def check(self, request: Request) -> None:
        """Raise Refused for a foreign host or origin, and without the token."""
        path, host, origin = request.scope["path"], request.headers.get("host", ""), request.headers.get("origin")
        if host not in self.hosts or len(request.headers.getlist("host")) != 1:
            raise Refused(403, f"Host: expected {' or '.join(sorted(self.hosts))}, got {host!r:.80}")
        if origin is not None and origin != f"http://{host}":
            raise Refused(403, f"Origin: expected http://{host}, got {origin!r:.80}")
        if path == "/favicon.ico":
            return
        given = request.query_params.get("token") if path == "/" else request.headers.get("x-npllm-token")
        if not secrets.compare_digest((given or "").encode(errors="replace"), self.token):
            raise Refused(403, "token: expected the one in the address that npllm lab printed")


async def body(request: Request) -> Mapping[str, Any]:
    """The JSON object in the body. Raises Refused for anything else, and for more than LARGEST bytes."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "Content-Type: expected application/json")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST:
            raise Refused(413, f"the request: expected at most {LARGEST} bytes")

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        asked = json.loads(data, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request: expected JSON, got {error}") from error
    if not isinstance(asked, dict):
        raise Refused(400, f"the request: expected an object, got {type(asked).__name__}")
    return asked


async def answer(worker: Worker, request: Request, name: tuple[str, str], work: Any) -> AsyncGenerator[Item, None]:
    """The items of a job, as they come. Raises what ended it. The job is cancelled once nobody reads any more."""
    loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def deliver(item: Any) -> None:
        try:
            loop.call_soon_threadsafe(arrived.put_nowait, item)
        except RuntimeError:  # the server has ended
            job.cancel()

    job = Job(name, work, deliver)

    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watch = asyncio.create_task(until_gone())
    worker.submit(job)
    try:
        while (item := await arrived.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        job.cancel()
        watch.cancel()


async def lines(first: Item, rest: AsyncIterator[Item]) -> AsyncIterator[str]:
    """The items as lines of JSON. An error is the last line: the status is already sent."""
    yield line(first)
    try:
        async for item in rest:
            yield line(item)
    except Cancelled:
        yield line({"cancelled": True})
    except Exception as error:  # noqa: BLE001 - reported in the line
        yield line({"error": status_and_line(error)[1]})


def line(item: Item) -> str:
    """One line of JSON; NaN and infinity, which it lacks, become null."""
    return json.dumps(finite(item), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def status_and_line(error: Exception) -> tuple[int, str]:
    """The status and the line for an error."""
    if isinstance(error, Refused):
        return error.status, one_line(error)
    if isinstance(error, Cancelled):
        return 409, "cancelled by a newer request"
    if isinstance(error, MemoryError):
        text = str(error) if isinstance(error, NotEnoughMemoryError) else "not enough memory"
        return 507, one_line(text)
    if isinstance(error, UsageError):
        return 400, str(error)
    if isinstance(error, NpllmError):
        return 422, str(error)
    return 500, one_line(f"a bug of npllm: {type(error).__name__}: {error}; please report it")


def plain_error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal: its status, and one line as JSON."""
    return JSONResponse({"error": one_line(text)}, status_code=status, headers=headers)


async def http_error(request: Request, error: Any) -> Response:
    """The answer to an unknown path or another method."""
    what = f"{request.method} {request.scope['path']}"
    return plain_error(error.status_code, f"{what}: {error.detail}", error.headers)
