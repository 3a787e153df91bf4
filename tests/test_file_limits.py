"""Files made to take memory or time: each is read or refused within 4 times its size plus 200 MB, and in 5 seconds.

Each is read in a process of its own, which compares its peak memory before and after.
"""

import json
import struct
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory of a process from /proc"),
]
SPARE, SECONDS, ADDRESS_SPACE = 200_000_000, 5, 3_000_000_000
READ = """
import json, resource, sys, time
from pathlib import Path
from npllm.checkpoint.gguf import read_gguf
from npllm.devices.memory import peak_bytes
from npllm.errors import ModelFileError
from npllm.inspect.trace import read_trace
from npllm.storage.json_file import read_json
from npllm.storage.safetensors_file import read_header

kind, path, limit = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (int(limit),) * 2)
read = {"json": read_json, "header": read_header, "trace": read_trace, "gguf": read_gguf}[kind]
before, start, message = peak_bytes(), time.process_time(), ""
try:
    read(Path(path))
except ModelFileError as error:
    message = str(error)
print(json.dumps([peak_bytes() - before, time.process_time() - start, message]))
"""


@pytest.fixture
def within(tmp_path):
    """Assert that a file is read or refused within the limits; return the message, "" if it is read."""

    def check(kind: str, data: bytes) -> str:
        path = tmp_path / "file"
        path.write_bytes(data)
        command = [sys.executable, "-c", READ, kind, str(path), str(ADDRESS_SPACE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        path.unlink()
        assert done.returncode == 0, done.stderr[-2000:]
        memory, seconds, message = json.loads(done.stdout)
        print(f"{kind}: {len(data) / 1e6:.1f} MB, {memory / 1e6:.0f} MB, {seconds:.2f} s, {message[-150:]}")
        assert memory <= 4 * len(data) + SPARE
        assert seconds <= SECONDS
        assert "\n" not in message
        return message

    return check


def repeated(item: str, count: int) -> bytes:
    """A JSON object with a list of `count` items."""
    return ('{"a":[' + ",".join([item] * count) + "]}").encode()


def numbered(item: str, count: int, start: str = "{", end: str = "}") -> bytes:
    """A JSON object of `count` numbered items."""
    return (start + ",".join(item % {"i": i} for i in range(count)) + end).encode()


TOKEN = (
    '"%(i)s":{"content":"<%(i)s>","lstrip":false,"normalized":false,"rstrip":false,"single_word":false,"special":true}'
)
MANY = 40_000_000
ACCEPTED = {
    "lists": lambda: repeated("[]", 900_000),
    "objects": lambda: repeated("{}", 850_000),
    "objects of one key": lambda: repeated('{"":0}', 490_000),
    "numbers": lambda: repeated("300", 3_000_000),
    "strings": lambda: repeated('"abc"', 1_300_000),
    "keys": lambda: numbered('"%(i)x":%(i)s', 800_000),
    "100,000 added tokens": lambda: numbered(TOKEN, 100_000, '{"added_tokens_decoder":{', "}}"),
    "an index of 100,000 tensors": lambda: numbered(
        '"model.layers.%(i)s.mlp.experts.255.down_proj.weight_scale_inv":"model-00001-of-000163.safetensors"',
        100_000,
        '{"weight_map":{',
        "}}",
    ),
    "one string": lambda: b'{"a":"' + b"a" * MANY + b'"}',
    "one string that ends with an emoji": lambda: b'{"a":"' + b"a" * 20_000_000 + "😀".encode() + b'"}',
    "a string that ends with an escaped emoji": lambda: b'{"a":"' + b"a" * 20_000_000 + rb"\ud83d\ude00" + b'"}',
    "blanks": lambda: b"{" + b" " * MANY + b"}",
    "a fraction of many digits": lambda: b'{"a":1.' + b"1" * MANY + b"e-5}",
}
REFUSED = {
    "lists": lambda: repeated("[]", 10_000_000),
    "objects of one key": lambda: repeated('{"":0}', 4_000_000),
    "numbers": lambda: repeated("300", 7_000_000),
    "keys": lambda: numbered('"%(i)x":%(i)s', 1_500_000),
    "one string that ends with an emoji": lambda: b'{"a":"' + b"a" * MANY + "😀".encode() + b'"}',
    "one key": lambda: ("{" + '"a":1,' * 5_000_000 + '"a":1}').encode(),
    "nested lists": lambda: b'{"a":' + b"[" * 10_000_000,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_json_that_is_read(within, name):
    assert within("json", ACCEPTED[name]()) == ""


@pytest.mark.parametrize("name", REFUSED)
def test_json_that_would_take_too_much_memory(within, name):
    assert "bytes of memory" in within("json", REFUSED[name]())


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


EMPTY = '"%(i)s":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'


def test_a_header_of_100_000_tensors(within):
    assert within("header", safetensors(numbered(EMPTY, 100_000))) == ""


HEADERS = {
    "500,000 empty tensors": lambda: numbered(EMPTY, 500_000),
    "a long shape": lambda: b'{"a":{"dtype":"F32","shape":[' + b"0," * 10_000_000 + b'0],"data_offsets":[0,0]}}',
    "much metadata": lambda: numbered('"%(i)s":""', 2_000_000, '{"__metadata__":{', "}}"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_would_take_too_much_memory(within, name):
    assert "bytes of memory" in within("header", safetensors(HEADERS[name]()))


def traced(names: str = '["a"]', ids: str = "7") -> bytes:
    """A trace file of one token, with this text in its metadata."""
    keys = {
        "__metadata__": {"names": names, "ids": ids},
        "a": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
    }
    return safetensors(json.dumps(keys).encode(), bytes(4))


TRACES = {
    "ids": (lambda: traced(ids=",".join(["7"] * 2_000_000)), "ids: expected at most 1048576 token ids, got 2000000"),
    "digits": (lambda: traced(ids="7" * MANY), "ids: expected comma-separated token ids"),
    "names": (lambda: traced(names=json.dumps([str(i) for i in range(900_000)])), '"names" to list each tensor once'),
    "too many names": (lambda: traced(names=json.dumps([""] * 5_000_000)), "of memory"),
    "nested names": (lambda: traced(names="[" * 1_000_000), 'without a list of "names"'),
}


@pytest.mark.parametrize("name", TRACES)
def test_traces(within, name):
    make, message = TRACES[name]
    assert message in within("trace", make())


def gguf(data: bytes, keys: int = 1, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + data


def listed(kind: int, count: int, data: bytes) -> bytes:
    """A .gguf file with one list."""
    return gguf(struct.pack("<Qc2IQ", 1, b"a", 9, kind, count) + data)


def string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


VOCABULARY = {
    "500,000 tokens of 30 bytes": lambda: listed(8, 500_000, string("é".encode() * 15) * 500_000),
    "1,000,000 merges": lambda: listed(8, 1_000_000, string(b"aaaa bbbb") * 1_000_000),
    "1,000,000 scores": lambda: listed(6, 1_000_000, bytes(4_000_000)),
    "a string": lambda: gguf(struct.pack("<QcI", 1, b"a", 8) + string(b"a" * MANY)),
    "a string with an emoji": lambda: gguf(struct.pack("<QcI", 1, b"a", 8) + string(b"a" * MANY + "😀".encode())),
}


@pytest.mark.parametrize("name", VOCABULARY)
def test_vocabularies_of_gguf_files(within, name):
    assert within("gguf", VOCABULARY[name]()) == ""


GGUF = {
    **{
        f"a list of type {kind}": (lambda kind=kind, each=each: listed(kind, 2**24, bytes(2**24 * each)), "of memory")
        for kind, each in ((0, 1), (5, 4), (12, 8))
    },
    "empty strings": (lambda: listed(8, 2**23, bytes(2**26)), "of memory"),
    "short strings": (lambda: listed(8, 2**22, string(b"ab") * 2**22), "of memory"),
    "keys": (
        lambda: gguf(b"".join(string(b"%08d" % i) + struct.pack("<IB", 0, 0) for i in range(10**5)), 10**5),
        "number of keys: expected at most 65536, got 100000",
    ),
    "tensors": (
        lambda: gguf(
            b"".join(string(b"%07d" % i) + struct.pack("<IQIQ", 1, 1, 0, 0) for i in range(10**5)), 0, tensors=10**5
        ),
        "number of tensors: expected at most 65536, got 100000",
    ),
}


@pytest.mark.parametrize("name", GGUF)
def test_gguf_files_that_would_take_too_much(within, name):
    make, message = GGUF[name]
    assert message in within("gguf", make())
