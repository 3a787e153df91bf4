"""Moving a loaded model to the GPU: which pass it gets, and the reason if the kernels are not used."""

import pytest
from kernel_models import random_lm
from libraries import NUMPY

from npllm.cuda.fit import why_not
from npllm.cuda.gpu import on_gpu, why_no_kernels, with_kernels
from npllm.cuda.step import KernelWeight
from npllm.model import transform


def test_a_model_that_fits_gets_kernels():
    lm = random_lm(NUMPY)
    placed = on_gpu(lm)
    assert why_no_kernels(placed) is None
    assert placed.transform is not transform
    assert isinstance(placed.weights.lm_head, KernelWeight)
    assert lm.transform is transform  # the argument is unchanged
    assert why_not(placed) is not None  # only the family's own pass is replaced, and only once


def test_kernels_can_be_switched_off():
    lm = random_lm(NUMPY)
    placed = on_gpu(lm, kernels=False)
    assert placed.weights is lm.weights
    assert why_no_kernels(placed) == "switched off (kernels=False, --no-kernels)"


def test_a_model_on_the_cpu_has_no_kernels():
    assert why_no_kernels(random_lm(NUMPY)) == "the model's pass does not come from npllm.load on a GPU"


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied(tied):
    weights = with_kernels(random_lm(NUMPY, tie_word_embeddings=tied)).weights
    assert (weights.lm_head is weights.embed_tokens) == tied
