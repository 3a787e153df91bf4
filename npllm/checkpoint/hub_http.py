"""What the Hugging Face Hub answers: the listing of a model, and the bytes of its files.

huggingface_hub makes the connections, so its proxies, certificates and HF_TOKEN work as usual. Its waits, retries and
redirects do not suit us: here every wait has a limit, no answer is read beyond the size that it may have, and the token
goes only to HF_ENDPOINT.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from ..devices.device import first_line

PATIENCE = 5.0  # seconds for the whole listing
PERSISTENCE = 5.0  # seconds without progress, after which a download that failed is not tried again
PAUSE = 1.0  # seconds before the next try
LARGEST_LISTING = 8_000_000  # bytes; some 40,000 files
REDIRECTS = 5
CHUNK = 65_536  # bytes; HF_HUB_DOWNLOAD_TIMEOUT, by default 10 seconds, is the time that one may take

T = TypeVar("T")


class NoAnswer(Exception):
    """The Hub is out of reach, or its answer is not what it should be. The message begins with a verb: what it does."""


class Refusal(NoAnswer):
    """The Hub refuses; another try would not help. The message is a sentence."""


class Entry(NamedTuple):
    """A file in a listing."""

    size: int
    digest: str  # in hexadecimal: the SHA-256 of a large file, and the SHA-1 of any other's Git blob


class Listing(NamedTuple):
    """The files of a model at one commit."""

    commit: str
    files: Mapping[str, Any]  # by name: what the Hub says of each, not checked yet


class Answer(NamedTuple):
    """The answer to a request."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]  # of the body, as they arrive
    close: Callable[[], None]


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns, or NoAnswer after that many seconds.

    It runs in a thread, because a lookup of a host name has no timeout, and the timeouts of HTTP libraries start again
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
    if not all(value.isascii() and value.isprintable() for value in usual.values()):
        raise Refusal("HF_TOKEN: expected printable ASCII characters")  # a library's message would show the token
    headers = {**usual, "accept-encoding": "identity", **headers}
    seconds *= 2  # of the library: `within` ends before that
    session: Any = get_session()
    if hasattr(session, "build_request"):  # httpx, since huggingface_hub 1.0
        question = session.build_request("GET", url, headers=headers, timeout=seconds)
        response = session.send(question, stream=True, follow_redirects=False)
        return Answer(response.status_code, response.headers, response.iter_raw(CHUNK), response.close)
    response = session.get(url, headers=headers, timeout=seconds, stream=True, allow_redirects=False)  # requests
    chunks = response.raw.stream(CHUNK, decode_content=False)
    return Answer(response.status_code, response.headers, chunks, response.close)


def ask(url: str, seconds: float, elsewhere: bool, **headers: str) -> Answer:
    """The answer at a URL, or where it redirects to; `elsewhere`: also on other hosts, where large files are."""
    for _ in range(REDIRECTS):
        if urlsplit(url).scheme not in ("http", "https"):
            raise NoAnswer("redirects to something that is not a web page")
        if not elsewhere and origin(url) != origin(endpoint()):
            raise NoAnswer(f"redirects to another host, {urlsplit(url).hostname}")
        answer = request(url, headers, seconds)
        if answer.status not in (301, 302, 303, 307, 308):
            return answer
        answer.close()
        url = urljoin(url, answer.headers.get("location", ""))
    raise NoAnswer("redirects without end")


def endpoint() -> str:
    """The URL of the Hub."""
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


def listing(name: str, revision: str) -> Listing:
    """The files of a model on the Hub.

    Raises
    ------
    Refusal : no such model or revision, or no access to it
    NoAnswer : the Hub is out of reach, or answers something else
    """

    def text() -> bytes:
        url = f"{endpoint()}/api/models/{name}/revision/{quote(revision, safe='')}?blobs=true"
        deadline = time.monotonic() + PATIENCE
        answer = ask(url, PATIENCE, elsewhere=False)
        try:
            check_status(answer)
            read = bytearray()
            for chunk in answer.chunks:
                read += chunk
                if len(read) > LARGEST_LISTING or time.monotonic() > deadline:
                    raise NoAnswer("answers without end")
            return bytes(read)
        finally:
            answer.close()

    answered = within(PATIENCE, text)
    try:
        found = json.loads(answered)
        siblings = {sibling["rfilename"]: sibling for sibling in found["siblings"]}
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise NoAnswer("answers something other than a listing of the model's files") from error
    if not is_commit(found.get("sha")) or (is_commit(revision) and revision != found["sha"]):
        raise NoAnswer("answers with a commit other than the one asked for, or with none")
    return Listing(found["sha"], siblings)


def is_commit(text: Any) -> bool:
    """Whether a text is a Git commit: anything else could be a path."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{40}", text) is not None


def entry(listed: Listing, file: str) -> Entry:
    """The size and the digest of a file in a listing, checked: the digest becomes the name of a file in the cache."""
    said = listed.files[file]
    large = said.get("lfs")
    size, digest = (large.get("size"), large.get("sha256")) if isinstance(large, dict) else (said.get("size"), None)
    digest = said.get("blobId") if digest is None else digest
    length = 64 if isinstance(large, dict) else 40
    if type(size) is not int or size < 0 or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]+", digest):
        raise NoAnswer(f"lists {file} without a size and a digest")
    if len(digest) != length:
        raise NoAnswer(f"lists {file} with a digest of {len(digest)} digits instead of {length}")
    return Entry(size, digest)


def check_status(answer: Answer) -> None:
    """Raise what an answer other than 200 or 206 means."""
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
                "no such folder, and no such model on the Hub; check the name, or set HF_TOKEN if it is private"
            )
        case _, 408 | 416 | 500 | 502 | 503 | 504:
            raise NoAnswer(problem)
    raise Refusal(f"{endpoint()} {problem}; try again later")


def fetch(name: str, commit: str, file: str, size: int, output: BinaryIO, progress: Callable[[int], Any]) -> None:
    """Append a file's bytes to `output`, from where it ends up to `size`; what arrives is not compared with a digest.

    A connection that breaks is opened again, and the download goes on where it stopped.

    output : open for reading and writing, at its end
    progress : is called with the number of bytes of each chunk

    Raises
    ------
    Refusal : the Hub does not give the file
    NoAnswer : no progress for PERSISTENCE seconds
    """
    url = f"{endpoint()}/{name}/resolve/{commit}/{quote(file)}"
    began, start = time.monotonic(), output.tell()
    while output.tell() < size:
        try:
            for chunk in body(url, file, size, output, progress):
                output.write(chunk[: size - output.tell()])
                progress(len(chunk))
            if output.tell() < size:
                raise NoAnswer(f"sends {output.tell()} of {size} bytes")
        except Refusal:
            raise
        except NoAnswer:
            if output.tell() - start >= CHUNK:
                began, start = time.monotonic(), output.tell()
            elif time.monotonic() - began > PERSISTENCE:
                raise
            time.sleep(PAUSE)


def body(url: str, file: str, size: int, output: BinaryIO, progress: Callable[[int], Any]) -> Iterator[bytes]:
    """The chunks of a file from where `output` ends; a Hub that sends the whole file instead empties it first."""
    from huggingface_hub import constants

    seconds = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    start = output.tell()
    headers = {"range": f"bytes={start}-"} if start else {}
    answer = within(seconds, lambda: ask(url, seconds, elsewhere=True, **headers))
    if start and answer.status in (200, 416):  # 416: there is more than the file has
        output.seek(0)
        output.truncate()
        progress(-start)
    if answer.status == 404:
        raise Refusal(f"{endpoint()} lists {file}, and does not have it")
    check_status(answer)
    while output.tell() < size and (chunk := within(seconds, lambda: next(answer.chunks, b""))):
        yield chunk
    answer.close()  # not after an error: the thread in `within` may still read
