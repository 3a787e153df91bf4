"""Phi-3-mini-128k and Phi-4-mini at a reduced width, with their own RoPE: a long prompt, and a text that becomes long.

The weights are random. Beyond the original context of 4,096 tokens the long factors apply, to all tokens.
"""

import numpy as np
import pytest
from bridge import tool
from tolerance import assert_same_ids

import npllm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.oracle,
    pytest.mark.filterwarnings("default"),  # transformers issues warnings of its own
]
WIDTHS = {
    "phi-3-mini-128k": {"hidden_size": 2 * 96, "num_attention_heads": 2, "num_key_value_heads": 2},
    "phi-4-mini": {"hidden_size": 3 * 128, "num_attention_heads": 3, "num_key_value_heads": 1},
}
SMALL = {"num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 300}
SMALL |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(scope="module", params=WIDTHS)
def both(request, tmp_path_factory):
    """A model in npllm and in transformers."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install -e '.[oracle]'"
    )
    golden, folder = tool("make_golden"), tmp_path_factory.mktemp("model")
    keys = tool("make_checkpoint").PRESETS[request.param] | WIDTHS[request.param] | SMALL
    model = transformers.AutoModelForCausalLM.from_config(transformers.Phi3Config(**keys), dtype=golden.torch.float32)
    golden.randomize(model, 0)
    model.save_pretrained(folder)
    return npllm.load(folder), transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=golden.torch.float32)


@pytest.mark.parametrize("length", [5000, 4090])
def test_the_ids_are_those_of_transformers(both, length):
    (lm, model), golden = both, tool("make_golden")
    ids = np.random.default_rng(length).integers(3, 300, length).tolist()
    [run] = golden.greedy(model, [ids], 12)
    made = [step.id for step in npllm.steps(lm, ids, max_new_tokens=12)]
    assert_same_ids(f"{length} tokens", made, run["greedy_ids"], run["gaps"])
