"""Installing the GPU's implementations in a loaded model: cuBLAS attention, and decode steps in our kernels."""

from types import ModuleType

from ..lm import LM
from . import kernels as cuda_kernels
from .attention import on_cuda
from .fit import why_not
from .step import KernelWeight, replayed


def on_gpu(lm: LM, kernels: bool = True) -> LM:
    """The model with a pass for the GPU. `lm.transform` must still be the family's own pass.

    kernels : False leaves decode steps to CuPy's functions. So do models that the kernels do not compute, and
        `why_no_kernels` gives the reason
    """
    reason = why_not(lm) if kernels else "switched off (kernels=False, --no-kernels)"
    lm = with_kernels(lm) if kernels else lm
    whole_pass = on_cuda(lm.transform)
    whole_pass.why_no_kernels = reason  # type: ignore[attr-defined]
    return lm._replace(transform=whole_pass)


def why_no_kernels(lm: LM) -> str | None:
    """The reason why the model's decode steps are not in our kernels, in one line; None if they are."""
    return getattr(lm.transform, "why_no_kernels", "the model's pass does not come from npllm.load on a GPU")


def with_kernels(lm: LM, functions: ModuleType = cuda_kernels) -> LM:
    """The model with its decode steps in kernels; the same model if the kernels do not compute it."""
    if why_not(lm) is not None:
        return lm
    weights = lm.weights
    if weights.lm_head is not None:
        head = KernelWeight(weights.lm_head, functions)
        tied = weights.lm_head is weights.embed_tokens
        weights = weights._replace(lm_head=head, embed_tokens=head if tied else weights.embed_tokens)
    return lm._replace(weights=weights, transform=replayed(lm.transform, functions))
