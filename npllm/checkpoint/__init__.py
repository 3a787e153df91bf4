"""From the files of a checkpoint to `Weights`.

hub            a name to a folder or a .gguf file
stored         a tensor in a file, read in small pieces and widened to float32
folder         Hugging Face layout: config.json, safetensors
gguf           the .gguf file format
gguf_config    a .gguf file's metadata as the keys of config.json
gguf_tokenizer a .gguf file's metadata as a tokenizer
names          the names of the tensors in a file, and which rows of which weight they fill
load           all of it together
"""
