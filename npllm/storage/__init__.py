"""Weights in memory and in files: storage in few bits, file formats, and writing files safely.

nibbles           two 4-bit codes in a byte
packed            a matrix in 16, 8 or 4 bits, and its products
groups            quantizing to 8 or 4 bits, and laying out the codes
rows              the same matrix row by row, for a GPU
columns           a float32 matrix column by column; small matrices in one buffer
blocks            what a file's blocks of codes and scales become
mxfp4             4-bit floating-point numbers, the format of gpt-oss
gguf_blocks       the block formats of GGUF
own_format        the codes, scales and minima that `npllm convert` writes
stored            a tensor in a file: where it is, and reading it in pieces
read_ahead        reading with several threads, in order
file_kind         what a file is, by its first bytes
json_file         JSON objects in files
safetensors_file  the header of a safetensors file, read and written
paths             paths as users give them
ending            signals that end the process, while it has temporary files
files             files and folders that are written completely or not at all
"""
