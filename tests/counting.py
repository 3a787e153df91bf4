"""Counts the operations of a forward pass as it runs, by the rules of npllm/inspect/cost.py."""

import numpy as np
from libraries import Library

import npllm


class Counting(np.ndarray):
    """A NumPy array that counts the operations it is used in."""

    flops = 0
    ARITHMETIC = (np.add, np.subtract, np.multiply, np.true_divide, np.exp, np.sqrt, np.tanh)
    FREE = (np.maximum, np.minimum, np.negative, np.absolute, np.greater, np.not_equal, np.isinf)
    FREE += (np.floor_divide,)  # of indices

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **how):
        def bare(x):
            return x.view(np.ndarray) if isinstance(x, Counting) else x

        if out is not None:
            how["out"] = tuple(bare(x) for x in out)
        result = getattr(ufunc, method)(*(bare(x) for x in inputs), **how)
        if ufunc is np.matmul:
            Counting.flops += 2 * result.size * inputs[0].shape[-1]
        elif ufunc in self.ARITHMETIC and method == "reduce":
            Counting.flops += inputs[0].size - result.size
        elif ufunc in self.ARITHMETIC:
            Counting.flops += np.size(result)
        else:
            assert ufunc in self.FREE, f"{ufunc}: does it count?"
        return np.asarray(result).view(Counting)

    def __array_function__(self, function, types, args, how):
        result = super().__array_function__(function, types, args, how)  # np.where drops the subclass
        return result.view(Counting) if isinstance(result, np.ndarray) else result


class CountingNumpy:
    """Just enough of a library for `Library.tree`."""

    def asarray(self, value, device=None):
        return value.view(Counting)


def counted_flops(lm, ids) -> int:
    """The number of floating-point operations in one pass over these ids."""
    counting = lm._replace(weights=Library(CountingNumpy()).tree(lm.weights))
    Counting.flops = 0
    npllm.forward(ids, counting)
    return Counting.flops
