import loops
import numpy as np
import pytest
from models import random_weights, tiny_config
from tolerance import assert_close

from npllm.backend.devices import to_host
from npllm.heads import lm_head


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_it_is_the_loop(lib, tied, batch):
    config = tiny_config(tie_word_embeddings=tied)
    weights, hidden = random_weights(config), random(*batch, 3, config.hidden_size)
    expected = np.apply_along_axis(loops.linear, -1, hidden, weights.lm_head)
    assert_close("logits", to_host(lm_head(lib.array(hidden), lib.tree(weights))), expected)


def test_a_tied_head_is_the_embeddings_matrix_and_a_vector_finds_its_own_token():
    weights = random_weights(tiny_config(tie_word_embeddings=True))
    assert weights.lm_head is weights.embed_tokens
    unit = weights.embed_tokens / np.linalg.norm(weights.embed_tokens, axis=-1, keepdims=True)
    weights = weights._replace(embed_tokens=unit, lm_head=unit)
    np.testing.assert_array_equal(np.argmax(lm_head(unit, weights), axis=-1), np.arange(len(unit)))
