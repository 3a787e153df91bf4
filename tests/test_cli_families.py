"""The commands on a golden model of every family, and tools/hf_trace.py: what it writes is what the model computes."""

import json

import pytest
from bridge import tool
from families import FAMILY, GOLDEN

from npllm.families import FAMILIES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.oracle,
    pytest.mark.filterwarnings("default"),  # transformers issues warnings of its own
]
BOTH_WAYS = {"bert"}  # the page of inspect --html shows triangles of attention, and refuses it
WITHOUT = {"ministral", "gemma3", "phi3small"}  # have no golden model: another's pass; unknown to transformers
# Of each family the first golden model that continues a text.
MODELS = {
    FAMILY[folder.name]: folder
    for folder in sorted(GOLDEN.iterdir(), reverse=True)
    if folder.name in FAMILY and '"ids"' in (folder / "expected.json").read_text(encoding="utf-8")
}


def test_every_family_has_a_golden_model():
    assert {*FAMILIES} <= {*MODELS} | WITHOUT


@pytest.mark.parametrize("family", MODELS)
def test_every_command_runs(npllm, tmp_path, monkeypatch, family):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[oracle]'")
    folder, trace = MODELS[family], tmp_path / "theirs.safetensors"
    ids = ",".join(map(str, json.loads((folder / "expected.json").read_text(encoding="utf-8"))["ids"]))
    monkeypatch.setattr("sys.argv", ["hf_trace.py", str(folder), "--ids", ids, "-o", str(trace)])
    tool("hf_trace").main()
    for command in (
        ("compare", trace, folder),
        ("convert", folder, tmp_path / "converted", "--dtype", "float32"),
        ("compare", trace, tmp_path / "converted"),
        ("show", "-m", folder),
        ("inspect", "-m", folder, "--ids", ids, *(() if family in BOTH_WAYS else ("--html", tmp_path / "page.html"))),
        ("trace", "-m", folder, "--ids", ids, "-o", tmp_path / "ours.safetensors"),
        ("compare", trace, tmp_path / "ours.safetensors"),
    ):
        done = npllm(*command)
        assert done.code == 0, (command, done)
