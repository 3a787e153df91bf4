"""Requests to the Hugging Face Hub, on huggingface_hub's connections: proxies, certificates and HF_TOKEN work as usual.

Its timeouts, retries and redirects do not suit us. Here every wait has a limit, and the token goes only to HF_ENDPOINT.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urljoin, urlsplit

from ..devices.device import first_line

REDIRECTS = 5
CHUNK = 65_536  # bytes; HF_HUB_DOWNLOAD_TIMEOUT, by default 10 seconds, is the time that one may take

T = TypeVar("T")


class NoAnswer(Exception):
    """The Hub is out of reach, or its answer is not valid. The message is a predicate: "cannot be reached"."""


class Refusal(NoAnswer):
    """The Hub refuses; trying again at once would not help. The message stands on its own."""


class Answer(NamedTuple):
    """The answer to a request."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]  # of the body, as they arrive
    close: Callable[[], None]


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns. Raises NoAnswer if it fails, or takes more than that many seconds.

    It runs in a thread, because looking up a host name has no timeout, and the timeouts of HTTP libraries start over
    with every byte. The short waits are for Windows, where Ctrl-C does not end a long one.
    """
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:  # noqa: BLE001 - it is raised below
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(0.1)
    if not outcome:
        raise NoAnswer(f"gives no answer within {seconds:g} seconds")
    value, error = outcome[0]
    if error is None:
        return value
    if isinstance(error, NoAnswer | MemoryError):
        raise error
    text = re.sub("//[^/@ ]*@", "//", first_line(error))  # a proxy's URL may hold a password
    raise NoAnswer(f"cannot be reached ({type(error).__name__}: {text})") from error


def request(url: str, headers: Mapping[str, str], seconds: float) -> Answer:
    """The answer at a URL, its body not read yet. Nothing is decompressed, and no redirect is followed."""
    from huggingface_hub.utils import build_hf_headers, get_session

    from ..version import __version__

    token = None if origin(url) == origin(endpoint()) else False  # None: as configured
    usual = build_hf_headers(token=token, library_name="npllm", library_version=__version__)
    authorization = usual.get("authorization", "")
    if not (authorization.isascii() and authorization.isprintable()):
        raise Refusal("HF_TOKEN: expected printable ASCII characters")  # a library's message would show the token
    headers = {**usual, "accept-encoding": "identity", **headers}
    seconds *= 2  # the library's own timeout: `within` ends before it
    session: Any = get_session()
    if hasattr(session, "build_request"):  # httpx, since huggingface_hub 1.0
        asked = session.build_request("GET", url, headers=headers, timeout=seconds)
        response = session.send(asked, stream=True, follow_redirects=False)
        return Answer(response.status_code, response.headers, response.iter_raw(CHUNK), response.close)
    response = session.get(url, headers=headers, timeout=seconds, stream=True, allow_redirects=False)  # requests
    chunks = response.raw.stream(CHUNK, decode_content=False)
    return Answer(response.status_code, response.headers, chunks, response.close)


def ask(url: str, seconds: float, elsewhere: bool, **headers: str) -> Answer:
    """The answer at a URL, or where it redirects to; with `elsewhere` also on other hosts, where large files are."""
    for _ in range(REDIRECTS):
        if urlsplit(url).scheme not in ("http", "https"):
            raise NoAnswer("redirects to a URL that is neither http nor https")
        if not elsewhere and origin(url) != origin(endpoint()):
            raise NoAnswer(f"redirects to another host, {urlsplit(url).hostname}")
        answer = request(url, headers, seconds)
        if answer.status not in (301, 302, 303, 307, 308):
            return answer
        answer.close()
        url = urljoin(url, answer.headers.get("location", ""))
    raise NoAnswer("redirects too many times")


def endpoint() -> str:
    """The URL of the Hub. Raises Refusal if HF_ENDPOINT is not one."""
    from huggingface_hub import constants

    url = constants.ENDPOINT
    try:
        scheme, host, _ = origin(url)
    except ValueError:
        scheme, host = "", None
    if scheme not in ("http", "https") or not host:
        raise Refusal(f"HF_ENDPOINT: expected a URL such as https://huggingface.co, got {url!r}")
    return url


def origin(url: str) -> tuple[str, str | None, int | None]:
    """The scheme, host and port of a URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def check_status(answer: Answer) -> None:
    """Raise the Refusal or NoAnswer that a status other than 200 or 206 means."""
    if answer.status in (200, 206):
        return
    answer.close()
    phrase = f" ({HTTPStatus(answer.status).phrase})" if answer.status in {*HTTPStatus} else ""
    problem = f"answers with status {answer.status}{phrase}"
    match answer.headers.get("x-error-code"), answer.status:
        case "GatedRepo", _:
            raise Refusal("access requires accepting its terms; do so on its page on the Hub, then set HF_TOKEN")
        case "RevisionNotFound", _:
            raise Refusal("the Hub has the model, but no such revision")
        case ("RepoNotFound", _) | (None, 401 | 404):
            raise Refusal(
                "no such folder, and no such model on the Hub; check the name, and HF_TOKEN if it is private or set"
            )
        case _, 408 | 416 | 500 | 502 | 503 | 504:
            raise NoAnswer(problem)
    raise Refusal(f"{endpoint()} {problem}; try again later")
