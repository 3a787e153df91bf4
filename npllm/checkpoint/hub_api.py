"""The answers of the Hugging Face Hub: the listing of a model, and the bytes of a file.

An answer is read up to the size that it may have, and nothing in it becomes a path unless it is hexadecimal.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

from .hub_http import CHUNK, NoAnswer, Refusal, ask, check_status, endpoint, within

PATIENCE = 5.0  # seconds for the whole listing
PERSISTENCE = 5.0  # seconds without progress, after which a download that failed is not tried again
PAUSE = 1.0  # seconds before the next try
LARGEST_LISTING = 8_000_000  # bytes; some 40,000 files


class Entry(NamedTuple):
    """A file in a listing."""

    size: int
    digest: str  # in hexadecimal: the SHA-256 of a large file, and the SHA-1 of any other's Git blob


class Listing(NamedTuple):
    """The files of a model at one commit."""

    commit: str
    files: Mapping[str, Any]  # by name: what the Hub says about each, not checked yet


def listing(name: str, revision: str) -> Listing:
    """The files of a model on the Hub.

    Raises
    ------
    Refusal : no such model or revision, or no access to it
    NoAnswer : the Hub is out of reach, or answers with something else
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
                    raise NoAnswer("sends too much, or too slowly")
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
    """Whether a value is the full hash of a Git commit: anything else could be a path."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{40}", text) is not None


def entry(listed: Listing, file: str) -> Entry:
    """The size and the digest of a file in a listing. The digest becomes the name of a file in the cache.

    Raises
    ------
    NoAnswer : the listing lacks them, or they are invalid
    """
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


def fetch(name: str, commit: str, file: str, size: int, output: BinaryIO, progress: Callable[[int], Any]) -> None:
    """Append a file's bytes to `output`, until it has `size` of them. They are not compared with a digest here.

    A connection that breaks is opened again, and the download resumes where it stopped.

    output : open for reading and writing, at its end
    progress : called with the number of bytes in each chunk

    Raises
    ------
    Refusal : the Hub refuses the file
    NoAnswer : no progress for PERSISTENCE seconds
    """
    url = f"{endpoint()}/{name}/resolve/{commit}/{quote(file)}"
    began, start = time.monotonic(), output.tell()
    while output.tell() < size:
        try:
            for chunk in body(url, file, size, output, progress):
                progress(output.write(chunk[: size - output.tell()]))
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
    """The chunks of a file from where `output` ends. If the Hub sends the whole file instead, `output` is emptied."""
    from huggingface_hub import constants

    seconds = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    start = output.tell()
    headers = {"range": f"bytes={start}-"} if start else {}
    answer = within(seconds, lambda: ask(url, seconds, elsewhere=True, **headers))
    if start and answer.status in (200, 416):  # 416: `output` is longer than the file
        output.seek(0)
        output.truncate()
        progress(-start)
    if answer.status == 404:
        answer.close()
        raise Refusal(f"{endpoint()} lists {file}, and does not have it")
    check_status(answer)
    while output.tell() < size and (chunk := within(seconds, lambda: next(answer.chunks, b""))):
        yield chunk
    answer.close()  # not after an error: the thread in `within` may still read
