"""A model in the local cache of the Hugging Face Hub, which other libraries share.

models--OWNER--NAME/
  blobs/DIGEST              the files, each under its digest
  snapshots/COMMIT/FILE     a link to a blob (the file itself where Windows allows no links)
  refs/REVISION             the commit of a branch or tag

Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..devices.units import format_bytes
from ..errors import ModelFileError, UnavailableError
from ..storage.files import temporary
from ..storage.json_file import read_json
from ..text.one_line import escaped
from . import hub_api
from .hub_api import Entry, Listing, is_commit
from .hub_http import NoAnswer, Refusal, endpoint

# What npllm reads besides the weights: no code, no pickles, nothing in subfolders.
SMALL = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja"),
)
LOCK_PATIENCE = 5.0  # seconds without progress of the process that holds a lock
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def commit_of(model: Path, revision: str) -> str | None:
    """The commit of a branch or tag, if the cache knows it; a commit is returned as it is."""
    if is_commit(revision):
        return revision
    ref = model / "refs" / revision
    commit = ref.read_text(encoding="utf-8", errors="replace")[:100].strip() if ref.is_file() else None
    return commit if is_commit(commit) else None


def missing(snapshot: Path, weights: bool) -> str | None:
    """The name of a file that npllm would read and that is not there; None if the snapshot is complete.

    Without a listing, it is not known which small files the model has. But a link without its blob reveals one.
    """
    expected = {"config.json"} | small_files_listed(snapshot)
    for file in SMALL:
        if (file in expected or (snapshot / file).is_symlink()) and not (snapshot / file).is_file():
            return file
    if not weights or (snapshot / WHOLE).is_file():
        return None
    if not (snapshot / INDEX).is_file():
        return WHOLE
    return next((file for file in shards(snapshot / INDEX) if not (snapshot / file).is_file()), None)


def small_files_listed(snapshot: Path) -> set[str]:
    """The small files of a model, if huggingface_hub (since version 2) has left a listing of them in the cache."""
    path = snapshot.parents[1] / "trees" / f"{snapshot.name}.json"
    if not path.is_file():
        return set()
    try:
        files = read_json(path).get("files")
    except ModelFileError:  # as in that library, a broken listing counts as none
        return set()
    return {*SMALL} & {*files} if isinstance(files, dict) else set()


def shards(index: Path) -> list[str]:
    """The names of the weight files in the index that are safe; folder.py refuses all others."""
    weight_map = read_json(index).get("weight_map")
    files = {str(file) for file in weight_map.values()} if isinstance(weight_map, dict) else set()
    return sorted(file for file in files if re.fullmatch(r"[^/\\:\0]+\.safetensors", file))


def complete(model: Path, name: str, listed: Listing, weights: bool) -> Path:
    """The snapshot of a listing, after downloading what npllm reads and the cache lacks.

    Raises
    ------
    UnavailableError : a file did not arrive as the listing describes it, or another process keeps it locked
    NoAnswer : the Hub does not deliver a file
    ModelFileError : the index of the weights is not a JSON object
    OSError : the cache cannot be written
    """
    snapshot = model / "snapshots" / listed.commit
    download(model, name, listed, [file for file in SMALL if file in listed.files])
    if weights and WHOLE in listed.files:
        download(model, name, listed, [WHOLE])
    elif weights and INDEX in listed.files:
        download(model, name, listed, [INDEX])
        download(model, name, listed, [file for file in shards(snapshot / INDEX) if file in listed.files])
    return snapshot


def download(model: Path, name: str, listed: Listing, files: list[str]) -> None:
    """Download those files that the snapshot lacks, or has with another size. Raises as `complete` does."""
    snapshot = model / "snapshots" / listed.commit
    entries = {file: hub_api.entry(listed, file) for file in files}
    absent = {file: entry for file, entry in entries.items() if not has_size(snapshot / file, entry.size)}
    if not absent:
        return
    blobs = {file: model / "blobs" / entry.digest for file, entry in absent.items()}
    for folder in (snapshot, model / "blobs"):
        folder.mkdir(parents=True, exist_ok=True)
    needed = sum(max(0, entry.size - downloaded(blobs[file])) for file, entry in absent.items())
    free = shutil.disk_usage(model).free
    if needed > free:
        raise UnavailableError(
            f"model {name}: the download needs {format_bytes(needed)}, {model} has {format_bytes(free)} left;"
            " delete something, or choose another cache with HF_HOME or --cache-dir"
        )
    for file, entry in absent.items():
        try:
            provide(name, listed.commit, file, entry, blobs[file])
        except NoAnswer as error:
            raise error if isinstance(error, Refusal) else NoAnswer(f"{error} for {file}") from error
        link(blobs[file], snapshot / file)


def has_size(path: Path, size: int) -> bool:
    """Whether this is a file of that size."""
    return path.is_file() and path.stat().st_size == size


def provide(name: str, commit: str, file: str, entry: Entry, blob: Path) -> None:
    """Download a file that the cache does not have, compare it with its digest, and only then give it its name.

    An interrupted download leaves its bytes behind, and the next one resumes from there.
    """
    part = blob.with_name(f"{blob.name}.incomplete")
    with only_writer(blob):
        if has_size(blob, entry.size):  # of another commit, or another process has just downloaded it
            part.unlink(missing_ok=True)
            return
        for resumed in (part.exists(), False):
            append(name, commit, file, entry.size, part)
            if digest(part, entry) == entry.digest:
                part.replace(blob)
                return
            part.unlink()
            if not resumed:
                break
    raise UnavailableError(
        f"model {name}: {file}: expected a file with the digest {entry.digest}, got another one, and removed it; run"
        f" again, or check the network and {endpoint()}"
    )


def append(name: str, commit: str, file: str, size: int, part: Path) -> None:
    """Download what is not yet in `part`, with a progress bar on stderr if that is a terminal."""
    from huggingface_hub.utils import tqdm

    with removed_on_errors(part), part.open("ab") as output:
        if output.tell() > size:  # not of this file
            output.seek(0)
            output.truncate()
        sizes = {"total": size, "initial": output.tell(), "unit": "B", "unit_scale": True}
        bar = tqdm(**sizes, desc=escaped(file), disable=None, leave=False)
        try:
            hub_api.fetch(name, commit, file, size, output, bar.update)
            output.flush()
            os.fsync(output.fileno())
        finally:
            bar.close()


@contextlib.contextmanager
def removed_on_errors(part: Path) -> Iterator[None]:
    """Remove a file that cannot be written completely: on a full disk, it would take the space that others need."""
    try:
        yield
    except OSError:
        part.unlink(missing_ok=True)
        raise


def digest(path: Path, entry: Entry) -> str:
    """A file's digest, of the same kind as its entry's: SHA-256, or the SHA-1 of a Git blob."""
    if len(entry.digest) == 64:
        start = hashlib.sha256()
    else:
        start = hashlib.sha1(b"blob %d\0" % entry.size, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: start).hexdigest()


@contextlib.contextmanager
def only_writer(blob: Path) -> Iterator[None]:
    """Hold the lock that huggingface_hub also takes while it downloads this blob.

    If another process holds it, wait as long as its download makes progress; then raise UnavailableError.
    """
    from huggingface_hub.utils import WeakFileLock

    model = blob.parents[1]
    path = model.parent / ".locks" / model.name / f"{blob.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        held = False
        while not held:
            before = downloaded(blob)
            try:
                stack.enter_context(WeakFileLock(str(path), timeout=LOCK_PATIENCE))
                held = True
            except TimeoutError as error:
                if downloaded(blob) == before:
                    raise UnavailableError(
                        f"model cache {model}: another process holds the lock {path}, and its download makes no"
                        " progress; end it, then run again"
                    ) from error
        yield


def downloaded(blob: Path) -> int:
    """The number of bytes of a blob that any process has downloaded so far."""
    total = 0
    for path in blob.parent.glob(f"{blob.name}*"):
        with contextlib.suppress(FileNotFoundError):  # just renamed
            total += path.stat().st_size
    return total


def link(blob: Path, file: Path) -> None:
    """Make a file of a snapshot a link to its blob or, where the system has no links, the blob itself."""
    part = temporary(file)
    try:
        part.symlink_to(os.path.relpath(blob, file.parent))
    except (OSError, NotImplementedError):
        blob.replace(part)
    try:
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def remember(model: Path, revision: str, commit: str) -> None:
    """Record the commit of a branch or tag, for runs without the Hub."""
    if is_commit(revision) or commit_of(model, revision) == commit:
        return
    ref = model / "refs" / revision
    part = temporary(ref)
    with contextlib.suppress(OSError):  # a read-only cache that others filled: this run has all that it needs
        ref.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(commit, encoding="utf-8")
            part.replace(ref)
        finally:
            part.unlink(missing_ok=True)
