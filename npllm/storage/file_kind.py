"""What a file is, judged by its first bytes and not by its name: to choose a reader, and for messages."""

import re
from pathlib import Path

# How files begin; the first match counts.
BEGINNINGS = {
    rb"GGUF\x00\x00\x00.": "a big-endian .gguf file",
    rb"GGUF": "a .gguf file",
    rb".{4}\x00{4}\{": "a safetensors file",  # the length of its header, then the header
    rb"\x80[\x02-\x05]": "a pickle, which could run code when it is read",
    rb"PK\x03\x04": "a ZIP file, as PyTorch and NumPy write them",
    rb"\x93NUMPY": "a NumPy array",
    rb"version https://git-lfs": "a Git LFS pointer and not the file itself",
    rb"(?i)\s*<(!doctype html|html)": "a web page",
    rb"(\xef\xbb\xbf)?\s*[{\[]": "a JSON file",
    rb"\Z": "an empty file",
}


def file_kind(path: Path) -> str:
    """What a file is, in words: "a .gguf file"."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror or error})"
    found = (kind for beginning, kind in BEGINNINGS.items() if re.match(beginning, start, re.DOTALL))
    return next(found, "another file")


def is_gguf(path: Path) -> bool:
    """Whether a file is a .gguf file, whatever its name."""
    return file_kind(path) in ("a .gguf file", "a big-endian .gguf file")
