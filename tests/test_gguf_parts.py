"""A model in several .gguf files, and .gguf files by their content."""

import shutil
import struct

import gguf
import numpy as np
import pytest
from checkpoints import GGUF_DTYPES, write_folder, write_gguf, write_gguf_file
from test_gguf import assert_same

import npllm
from npllm.apps.speed import model_file_bytes
from npllm.checkpoint.gguf import read_gguf
from npllm.checkpoint.gguf_parts import model_in, parts_of, read_gguf_model
from npllm.checkpoint.hub import find
from npllm.checkpoint.load import load_tokenizer
from npllm.errors import ModelFileError, UnavailableError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model in one file."""
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    write_gguf(path, "llama")
    return path


@pytest.fixture(scope="module")
def lm(whole):
    return npllm.load(whole)


def contents(path):
    """Metadata, and tensors as `write_gguf_file` takes them."""
    metadata, stored = read_gguf(path)
    raw = path.read_bytes()
    return metadata, {
        name: (GGUF_DTYPES[one.dtype], one.shape, raw[one.offset : one.offset + one.nbytes])
        for name, one in stored.items()
    }


def split(whole, folder, count=3, name="m", **changes):
    """Write a model in parts. `changes` are metadata of the last part, by name with _ for a dot; None removes one."""
    metadata, tensors = contents(whole)
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        names = list(tensors)[number::count]
        keys = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors)}
        if number == count - 1:
            keys |= {key.replace("_", "."): value for key, value in changes.items()}
        keys = {key: value for key, value in keys.items() if value is not None}
        paths.append(folder / f"{name}-{number + 1:05}-of-{count:05}.gguf")
        keys = (metadata if number == 0 else {}) | keys
        write_gguf_file(paths[-1], keys, {name: tensors[name] for name in names})
    return paths


def refuses(path, *parts):
    with pytest.raises(ModelFileError) as raised:
        npllm.load(path)
    assert "\n" not in str(raised.value)
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_loads_the_whole_model(whole, lm, tmp_path, given):
    parts = split(whole, tmp_path)
    found = npllm.load(parts[given])
    assert_same(found.weights, lm.weights)
    assert found.config == lm.config
    assert found.tokenizer.encode("the hen") == lm.tokenizer.encode("the hen")


def test_parts_as_the_gguf_package_writes_them(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    values = {f"t{i}": np.full((2, 3), i, dtype=np.float32) for i in range(5)}
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.add_block_count(7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.iterdir())
    assert [path.name for path in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for given in parts:
        metadata, stored = read_gguf_model(given)
        assert metadata["llama.block_count"] == 7
        assert {name: one.path for name, one in stored.items()} == {f"t{i}": parts[i // 2] for i in range(5)}
        for name, one in stored.items():
            raw = np.fromfile(one.path, np.float32, 6, offset=one.offset)
            np.testing.assert_array_equal(raw.reshape(one.shape), values[name])


def test_a_first_part_without_tensors(whole, lm, tmp_path):
    metadata, tensors = contents(whole)
    keys = {"split.count": 2, "split.tensors.count": len(tensors)}
    write_gguf_file(tmp_path / "m-00001-of-00002.gguf", metadata | keys | {"split.no": 0}, {})
    write_gguf_file(tmp_path / "m-00002-of-00002.gguf", keys | {"split.no": 1}, tensors)
    assert_same(npllm.load(tmp_path / "m-00001-of-00002.gguf").weights, lm.weights)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_part_that_is_missing_is_named(whole, tmp_path, lost):
    parts = split(whole, tmp_path)
    parts[lost - 1].unlink()
    given = 1 if lost > 1 else 2
    refuses(parts[given - 1], f"part {given} of 3: m-0000{lost}-of-00003.gguf is missing; put all parts in one folder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_no": 0}, "split.no: expected 2, as in part 1, got 0"),
        ({"split_no": None}, "split.no: expected 2, as in part 1, got None"),
        ({"split_count": 4}, "split.count: expected 3, as in part 1, got 4"),
        ({"split_count": None}, "split.count: expected 3, as in part 1, got None"),
        ({"split_count": "3"}, "split.count: expected 3, as in part 1, got '3'"),
        ({"split_tensors_count": 7}, "split.tensors.count: expected 21, as in part 1, got 7"),
        ({"general_architecture": "phi3"}, "general.architecture: expected 'llama', as in part 1, got 'phi3'"),
        ({"tokenizer_ggml_model": "llama"}, "tokenizer.ggml.model: expected 'gpt2', as in part 1, got 'llama'"),
    ],
)
def test_a_part_of_another_model(whole, tmp_path, changes, message):
    parts = split(whole, tmp_path, **changes)
    refuses(parts[0], f"{parts[2]}: {message}")


def test_a_first_part_that_is_another(whole, tmp_path):
    parts = split(whole, tmp_path)
    shutil.copy(parts[1], parts[0])
    refuses(parts[1], f"{parts[0]}: split.no: expected 0, as in part 1, got 1")


def test_a_tensor_in_two_parts(whole, tmp_path):
    parts = split(whole, tmp_path)
    metadata, tensors = contents(parts[1])
    _, more = contents(parts[0])
    write_gguf_file(parts[1], metadata, tensors | dict([next(iter(more.items()))]))
    refuses(parts[0], f"{parts[1]}: expected each tensor in one part, got token_embd.weight in two")


def test_a_tensor_that_no_part_has(whole, tmp_path):
    parts = split(whole, tmp_path)
    metadata, tensors = contents(parts[2])
    write_gguf_file(parts[2], metadata, dict(list(tensors.items())[1:]))
    refuses(parts[0], "split.tensors.count: expected 21 tensors in all parts, got 20")


@pytest.mark.parametrize(
    "name", ["m.gguf", "sha256-0123", "m-00002-of-00003.gguf", "m-00001-of-00004.gguf", "m-1-of-3.gguf"]
)
def test_a_part_of_another_name(whole, tmp_path, name):
    parts = split(whole, tmp_path / "parts")
    shutil.copy(parts[0], tmp_path / name)
    refuses(tmp_path / name, "expected a name that ends in -00001-of-00003.gguf, as its metadata say, got " + name)


@pytest.mark.parametrize("value", ["2", 2.0, -1, [2], True])
@pytest.mark.parametrize("key", ["split.count", "split.no", "split.tensors.count"])
def test_numbers_of_parts_that_are_no_numbers(whole, tmp_path, key, value):
    metadata, tensors = contents(whole)
    keys = {"split.no": 0, "split.count": 2, "split.tensors.count": len(tensors), key: value}
    path = tmp_path / "m-00001-of-00002.gguf"
    write_gguf_file(path, metadata | keys, tensors)
    write_gguf_file(tmp_path / "m-00002-of-00002.gguf", keys | {"split.no": 1}, {})
    refuses(path, f"{key}: expected ")


@pytest.mark.parametrize("keys", [{"split.count": 1}, {"split.count": 0}, {"split.count": 1, "split.no": 0}])
def test_one_part_is_the_whole(whole, tmp_path, keys):
    metadata, tensors = contents(whole)
    write_gguf_file(tmp_path / "any name", metadata | keys, tensors)
    assert len(read_gguf_model(tmp_path / "any name")[1]) == len(tensors)


def test_a_name_alone_makes_no_parts(whole, tmp_path):
    shutil.copy(whole, tmp_path / "m-00001-of-00002.gguf")
    assert npllm.load(tmp_path / "m-00001-of-00002.gguf").config.num_hidden_layers == 2


def test_the_names_of_all_parts(tmp_path):
    assert parts_of(tmp_path / "a-00002-of-00002.GGUF") == [tmp_path / f"a-0000{i}-of-00002.GGUF" for i in (1, 2)]
    assert parts_of(tmp_path / "a.gguf") == [tmp_path / "a.gguf"]


def test_the_size_of_all_parts(whole, tmp_path):
    parts = split(whole, tmp_path)
    assert model_file_bytes(str(parts[1]), None, None, True) == sum(path.stat().st_size for path in parts)


# By content


@pytest.mark.parametrize("name", ["sha256-0123456789abcdef", "m.GGUF", "m", "m.bin", "m.gguf.part"])
def test_a_gguf_file_may_have_any_name(whole, tmp_path, name):
    shutil.copy(whole, tmp_path / name)
    assert find(str(tmp_path / name)) == tmp_path / name
    assert read_gguf_model(tmp_path / name)[0] == read_gguf_model(whole)[0]


def test_a_model_of_ollama_loads(whole, lm, tmp_path):
    shutil.copy(whole, tmp_path / "sha256-01")
    assert_same(npllm.load(tmp_path / "sha256-01").weights, lm.weights)
    assert load_tokenizer(tmp_path / "sha256-01").encode("the") == lm.tokenizer.encode("the")


@pytest.mark.parametrize(
    ("name", "start", "kind"),
    [
        ("pytorch_model.bin", b"\x80\x02}q", "a pickle, which could run code when it is read"),
        ("model.pt", b"PK\3\4" + bytes(60), "a ZIP file, as PyTorch and NumPy write them"),
        ("model.safetensors", struct.pack("<Q", 2) + b"{}", "a safetensors file"),
        ("m", b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer and not the file itself"),
        ("config.json", b"{}", "a JSON file"),
        ("m", b"", "an empty file"),
        ("m", b"GGU", "another file"),
    ],
)
def test_what_a_file_is_that_is_no_model(tmp_path, name, start, kind):
    (tmp_path / name).write_bytes(start)
    refuses(tmp_path / name, f"{name}: expected a folder or a .gguf file, got {kind}; give the folder")


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"version https://git-lfs", "a Git LFS pointer"), (b"<html>", "a web page"), (b"PK\3\4", "a ZIP")],
)
def test_another_file_of_that_name(tmp_path, start, kind):
    (tmp_path / "m.gguf").write_bytes(start + bytes(60))
    refuses(tmp_path / "m.gguf", "expected a little-endian GGUF file of version 2 or 3, got " + kind)


@pytest.mark.parametrize("name", ["m.gguf", "sha256-01"])
def test_a_big_endian_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    refuses(tmp_path / name, "expected a little-endian GGUF file of version 2 or 3, got a big-endian .gguf file")


# Folders


def test_the_one_model_of_a_folder(whole, tmp_path):
    shutil.copy(whole, tmp_path / "m.gguf")
    (tmp_path / "README.md").touch()
    assert find(str(tmp_path)) == tmp_path / "m.gguf"
    assert npllm.load(tmp_path).config.num_hidden_layers == 2
    (tmp_path / "m.gguf").rename(tmp_path / "m.GGUF")
    assert find(str(tmp_path)).name == "m.GGUF"


def test_the_parts_of_one_model_in_a_folder(whole, tmp_path):
    parts = split(whole, tmp_path)
    assert find(str(tmp_path)) == parts[0]
    parts[0].unlink()
    refuses(tmp_path, "part 2 of 3: m-00001-of-00003.gguf is missing")


@pytest.mark.parametrize("count", [2, 7])
def test_several_models_in_a_folder(whole, tmp_path, count):
    for i in range(count):
        (tmp_path / f"m{i}.gguf").touch()
    split(whole, tmp_path)
    refuses(
        tmp_path, f"expected one model, got {count + 1}: m-00001-of-00003.gguf, m0.gguf, ", "; give the name of one"
    )


def test_config_json_comes_first(whole, tmp_path):
    write_folder(tmp_path / "m")
    shutil.copy(whole, tmp_path / "m" / "m.gguf")
    assert find(str(tmp_path / "m")) == tmp_path / "m"


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", denied)
    with pytest.raises(UnavailableError, match="cannot be read \\(Permission denied\\)"):
        find(str(tmp_path))


def test_a_name_of_no_parts_is_that_of_one_file(tmp_path):
    file = tmp_path / "m-00001-of-00000.gguf"
    write_gguf(file)
    assert parts_of(file) == [file]
    assert model_in(tmp_path) == file
