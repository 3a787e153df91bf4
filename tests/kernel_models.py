"""Small models for the GPU kernel tests, which without a GPU run the kernels' definitions (npllm/cuda/twins.py)."""

from functools import partial

import numpy as np
import pytest
from models import random_weights, tiny_config

from npllm.cache import empty_cache
from npllm.cuda import block as block_module
from npllm.cuda import step as step_module
from npllm.cuda import twins
from npllm.cuda.block import cuda_block
from npllm.devices.device import to_host
from npllm.devices.workers import Workers
from npllm.lm import LM
from npllm.storage.groups import GroupLayout, fill_groups

TWIN_BLOCK = partial(cuda_block, functions=twins)


def random_lm(lib, seed=0, biases=False, **keys):
    """A tiny random model on an array library."""
    config = tiny_config(**keys)
    weights = lib.tree(random_weights(config, seed, biases=biases))
    if config.tie_word_embeddings:
        weights = weights._replace(lm_head=weights.embed_tokens)
    return LM(config, weights, None, {})


def pass_by_pass(lm, ids, whole_pass, chunks, cache=None, **options):
    """The hidden states of each pass and the cache, with the ids split into chunks of these lengths."""
    cache = empty_cache(lm.config, ids.shape[0] + 2, like=lm.weights.norm) if cache is None else cache
    made, start = [], 0
    for length in chunks:
        hidden, _ = whole_pass(ids[start : start + length], lm.weights, lm.config, cache, **options)
        made.append(to_host(hidden))
        start += length
    return made, cache


@pytest.fixture
def counted(monkeypatch):
    """How often kernels compute a block, and how often a whole step."""
    calls = {"block": 0, "step": 0}
    block_step, run = block_module.block_step, step_module.DecodeStep.run

    def counting_block(*arguments, **options):
        calls["block"] += 1
        return block_step(*arguments, **options)

    def counting_run(*arguments):
        calls["step"] += 1
        return run(*arguments)

    monkeypatch.setattr(block_module, "block_step", counting_block)
    monkeypatch.setattr(step_module, "block_step", counting_block)
    monkeypatch.setattr(step_module.DecodeStep, "run", counting_run)
    return calls


def random_groups(bits, offset, group, has_minimum, height=20, width=96, seed=0):
    """A quantized matrix with random codes, scales and minimums."""
    random, shape = np.random.default_rng(seed), (height, width // group)
    made = GroupLayout(bits, group, offset, has_minimum).empty((height, width), Workers(1))
    low, high = (0, 2**bits) if bits == 4 or offset else (-127, 128)
    codes = random.integers(low, high, (*shape, group)).astype(made.codes.dtype)
    scale, minimum = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
    fill_groups(made, 0, codes, scale, minimum if has_minimum else None)
    return made
