"""The CPU's kernels: plain loops, compiled by Numba where it is installed (the extra `fast`). In reading order:

jit       compiling a loop; casts of bits, counters
team      the threads that run a loop together
records   the weights as records of addresses
products  a stored matrix times one vector or a few
exp       the exponential function
layers    norms, RoPE, attention over the cache, gates
step      a whole decode step
many      a stored matrix times many vectors
prefill   all blocks for many tokens
fit       which models have their steps in loops
cpu       `on_cpu`: installs all of this in a loaded model
"""
