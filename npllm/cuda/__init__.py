"""CUDA kernels for decoding, and what puts them into a model. In reading order:

attention   attention by cuBLAS, with keys and values read in place
kernels     launches the kernels in the .cu files next to it
twins       what each kernel computes, as an array function
fit         which models the kernels support, and why not the others
block       the Transformer block for one token, in kernels
step        a whole decode step, captured as a CUDA graph
gpu         `on_gpu`: installs all of this in a loaded model
"""
