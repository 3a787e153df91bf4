"""npllm show: the model's structure."""

import re

import pytest
from checkpoints import write_folder

from npllm import load
from npllm.devices.memory import format_bytes
from npllm.inspect.structure import structure


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


def test_show_prints_the_structure(npllm, lm):
    done = npllm("show")
    assert done == (0, "".join(f"{line}\n" for line in structure(lm)).replace("\n\n", "\n\nname: tiny\n"), "")
    names = re.findall(r"\((\w+)\):", done.out)
    assert names == [
        "model", "embed_tokens", "layers", "input_layernorm", "self_attn", "qkv_proj", "rotary_emb", "o_proj",
        "post_attention_layernorm", "mlp", "gate_up_proj", "activation_fn", "down_proj", "norm", "lm_head",
    ]  # fmt: skip
    assert "(0-1): 2 x Block" in done.out
    assert re.search(r"Linear\(in_features=64, out_features=128, bias=False\) +8,192 +float32 +32.8 kB", done.out)


def test_show_counts_parameters_bytes_and_cache(lm):
    per_block = 64 + 64 * 128 + 64 * 64 + 64 + 64 * 192 + 96 * 64
    total = 288 * 64 + 2 * per_block + 64 + 288 * 64
    assert f"phi3: {total:,} parameters, {format_bytes(4 * total)} as float32" in structure(lm)
    assert "KV cache: 512 bytes per token, 131.1 kB for the whole context" in structure(lm)


def test_show_tells_what_is_tied_biased_and_different(tmp_path):
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_hidden_layers": 3}
    write_folder(tmp_path / "tied", "qwen2", tied=True, **window)
    shown = "\n".join(structure(load(tmp_path / "tied")))
    assert "tied: it is embed_tokens" in shown
    assert re.search(r"\(0\): 1 x Block\n.*\n +\(self_attn\): Attention\(heads=4, kv_heads=2, head_dim=16\)\n", shown)
    assert re.search(r"\(1-2\): 2 x Block\n.*\n +\(self_attn\): Attention\(.*, sliding_window=8\)\n", shown)
    assert re.search(r"\(qkv_proj\): .*bias=True\) +8,320 ", shown)


def test_columns_stay_in_line_where_a_layer_has_two_dtypes(tmp_path):
    write_folder(tmp_path / "biased", "qwen2")
    lines = structure(load(tmp_path / "biased", dtype="int4"))
    rows = [line for line in lines if re.search(r" [0-9.]+ [kM]?B$", line)]
    assert any("float32, int4/32" in row for row in rows)
    assert len({len(row) for row in rows}) == 1
