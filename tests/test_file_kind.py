"""What a file is, by its first bytes."""

import pickle
import struct

import numpy as np
import pytest

from npllm.storage.file_kind import file_kind


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"GGUF\3\0\0\0" + bytes(100), "a .gguf file"),
        (b"GGUF", "a .gguf file"),
        (b"GGUF\0\0\0\3" + bytes(100), "a big-endian .gguf file"),
        (struct.pack("<Q", 2) + b"{}", "a safetensors file"),
        (pickle.dumps([1], protocol=2), "a pickle, which could run code when it is read"),
        (b"PK\3\4" + bytes(100), "a ZIP file, as PyTorch and NumPy write them"),
        (b"\x93NUMPY\1\0", "a NumPy array"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer and not the file itself"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n<HTML>", "a web page"),
        (b'{"a": 1}', "a JSON file"),
        (b"", "an empty file"),
        (b"something else", "another file"),
        (bytes(100), "another file"),
    ],
)
def test_the_first_bytes_tell(tmp_path, start, kind):
    (tmp_path / "x").write_bytes(start)
    assert file_kind(tmp_path / "x") == kind


def test_files_of_numpy(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    np.save(tmp_path / "x.npy", np.zeros(2))
    assert file_kind(tmp_path / "x.npz").startswith("a ZIP file")
    assert file_kind(tmp_path / "x.npy") == "a NumPy array"
