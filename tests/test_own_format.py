"""npllm's own format for quantized matrices: three tensors each."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from stored_weights import matrix

from npllm.checkpoint.quantized import joined, quantization_config
from npllm.storage import own_format
from npllm.storage.groups import quantize_groups
from npllm.storage.nibbles import pack
from npllm.storage.safetensors_file import read_header
from npllm.storage.stored import read_rows


def test_the_names_of_the_parts_are_those_of_the_docstring():
    assert (own_format.CODES, own_format.SCALE, own_format.MINIMUM) == (".codes", ".scale", ".minimum")


@pytest.mark.parametrize("bits", [8, 4])
def test_three_tensors_are_read_as_one_matrix(tmp_path, bits):
    split = quantize_groups(matrix(5, 96), bits)
    codes = (split.codes if bits == 8 else pack(split.codes)).reshape(5, -1)
    parts = {".codes": codes, ".scale": split.scale, ".minimum": split.minimum}
    tensors = {f"w{suffix}": part for suffix, part in parts.items() if part is not None}
    said = own_format.tensors_of(f"int{bits}/32", (5, 96))
    assert {f"w{suffix}": shape for suffix, (_, shape) in said.items()} == {k: v.shape for k, v in tensors.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    found = read_header(tmp_path / "x.safetensors")
    assert {suffix: found[f"w{suffix}"].dtype for suffix in said} == {k: dtype for k, (dtype, _) in said.items()}
    stored = joined({"quantization_config": quantization_config(bits)}, found, "x")["w"]
    assert (stored.dtype, stored.shape) == (f"int{bits}/32", (5, 96))
    assert stored.nbytes == sum(part.nbytes for part in tensors.values())
    expected = split.codes * split.scale.astype(np.float32)[..., None]
    expected += 0 if split.minimum is None else split.minimum.astype(np.float32)[..., None]
    np.testing.assert_array_equal(np.concatenate(list(read_rows(stored))), expected.reshape(5, 96))
