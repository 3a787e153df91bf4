"""docs/find-my-bug.md: each planted bug is found at the right step, and the page shows the actual output.

The same three bugs are planted in the default model through npllm's own arguments.
"""

import doctest
import json
import re
from pathlib import Path

import numpy as np
import pytest
from bridge import tool
from default_model import needs_default_model
from safetensors.numpy import load_file

from npllm import forward, load
from npllm.inspect.compare import compare, first_beyond
from npllm.inspect.record import record
from npllm.inspect.trace import read_trace, trace, write_trace
from npllm.masks import sliding_window

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "find-my-bug.md").read_text(encoding="utf-8")
PORT = (ROOT / "docs" / "my_port.py").read_text(encoding="utf-8")
FOLDER = "tests/golden/mistral-window-ends"
IDS = re.search(r"--ids ([\d,]+)", PAGE)[1]
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
PLANTED = [section for section in SECTIONS.values() if "```diff" in section]
STEPS = ["layers.0.attention.q_rotated", "layers.0.feedforward.gate", "layers.0.attention.weights"]


def block(section, language):
    """The code block in a section of the page."""
    return re.search(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)[1]


def with_bug(section):
    """my_port.py with the lines of a section's diff changed."""
    source, diff = PORT, block(section, "diff")
    for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", diff, re.M):
        old, new = (re.sub(r"^[-+]", "", lines, flags=re.M) for lines in (old, new))
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder from which the page's paths lead to the repository's files."""
    for name in ("tests", "tools", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def theirs(folder):
    """The output of tools/hf_trace.py, recorded when the golden values were made."""
    values = load_file(ROOT / FOLDER / "expected.safetensors")
    assert json.loads((ROOT / FOLDER / "expected.json").read_text())["ids"] == [int(i) for i in IDS.split(",")]
    order = list(trace(load(ROOT / FOLDER), [1]))
    for layer in range(2):
        order.insert(order.index(f"layers.{layer}.attention.scores"), f"layers.{layer}.attention.visible")
    made_by = {"model": FOLDER, "dtype": "float32", "device": "cpu", "made_by": "transformers 5, torch 2"}
    write_trace(Path("theirs.safetensors"), {name: values[name] for name in order}, {"ids": IDS, **made_by})


def run_port(source):
    """Run the equivalent of `python docs/my_port.py FOLDER IDS ours.safetensors`."""
    module = {"__name__": "my_port"}
    exec(compile(source, "my_port.py", "exec"), module)
    module["main"](FOLDER, IDS, "ours.safetensors")


def prints(npllm, section, code):
    """Run the page's comparison, and check the output against the page."""
    done = npllm("compare", "theirs.safetensors", "ours.safetensors")
    assert (done.code, done.err) == (code, "")
    expected = block(section, "text")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(expected, done.out, flags), f"expected:\n{expected}\ngot:\n{done.out}"


def test_the_port_without_a_bug_agrees(npllm, theirs):
    run_port(PORT)
    prints(npllm, SECTIONS["Compare"], 0)
    assert json.loads(npllm("compare", "theirs.safetensors", "ours.safetensors", "--json").out)["first"] is None


@pytest.mark.parametrize(("section", "step"), list(zip(PLANTED, STEPS, strict=True)), ids=STEPS)
def test_each_planted_bug_is_found_at_its_step(npllm, theirs, section, step):
    run_port(with_bug(section))
    prints(npllm, section, 1)
    done = npllm("compare", "theirs.safetensors", "ours.safetensors", "--json")
    assert (done.code, json.loads(done.out)["first"]) == (1, step)


@pytest.mark.parametrize(("section", "step"), list(zip(PLANTED, STEPS, strict=True)), ids=STEPS)
def test_a_model_is_as_good_a_reference_as_a_file(npllm, folder, section, step):
    run_port(with_bug(section))
    done = npllm("compare", FOLDER, "ours.safetensors", "--json")
    assert (done.code, json.loads(done.out)["first"]) == (1, step)


def test_the_commands_of_the_page_are_those_that_are_run_here():
    hf_trace, port, compared = re.findall(r"^```sh\n(.*)\n```$", PAGE, re.M)
    assert hf_trace == f"python tools/hf_trace.py {FOLDER} --ids {IDS} -o theirs.safetensors"
    assert port == f"python docs/my_port.py {FOLDER} {IDS} ours.safetensors"
    assert compared == "npllm compare theirs.safetensors ours.safetensors"


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
def test_hf_trace_writes_what_was_recorded(npllm, theirs, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[oracle]'")
    hf_trace = tool("hf_trace")
    argv = ["hf_trace.py", FOLDER, "--ids", IDS, "-o", "fresh.safetensors"]
    monkeypatch.setattr("sys.argv", argv)
    hf_trace.main()
    fresh, metadata = read_trace(Path("fresh.safetensors"))
    recorded, _ = read_trace(Path("theirs.safetensors"))
    assert list(fresh) == list(recorded)
    assert metadata["ids"] == IDS
    npllm("tokenize", "")  # clears the captured output
    assert npllm("compare", "theirs.safetensors", "fresh.safetensors").code == 0
    assert npllm("compare", "fresh.safetensors", FOLDER).code == 0


# The same bugs in the default model


def rotated_as_neighbours(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[..., None, :, :], sin[..., None, :, :]
    return np.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).reshape(x.shape)


def swapped(weights):
    """Weights with up before gate in every block's gate_up_proj."""
    return weights._replace(
        layers=tuple(
            block._replace(gate_up_proj=np.concatenate(np.split(block.gate_up_proj, 2)[::-1]))
            for block in weights.layers
        )
    )


@pytest.mark.slow
@needs_default_model
def test_in_the_default_model_they_are_found_too(monkeypatch):
    lm = load(dtype="float32")
    ids = np.array(lm.tokenizer.encode("The dog chased the squirrel because it was afraid of the noise."))
    tokens = np.arange(len(ids))
    right, windowed = sliding_window(tokens, tokens, 8), sliding_window(tokens, tokens, 9)

    def seen(weights=lm.weights, visible=right):
        values = {}
        forward(ids, lm._replace(weights=weights), visible=visible, tap=record(values))
        return values

    expected = seen()

    def first(values):
        return first_beyond(compare(expected, values)).name

    assert first_beyond(compare(expected, seen())) is None
    assert first(seen(visible=windowed)) == "layers.0.attention.weights"
    assert first(seen(swapped(lm.weights))) == "layers.0.feedforward.gate"
    monkeypatch.setattr("npllm.block.apply_rope", rotated_as_neighbours)
    assert first(seen()) == "layers.0.attention.q_rotated"
