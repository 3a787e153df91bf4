"""From the files of a checkpoint to `LM`.

hub               a name to a folder or a .gguf file
stored            a tensor in a file, read in small pieces and widened to float32
folder            Hugging Face layout: JSON files, safetensors
gguf              the .gguf file format
config_json       config.json, checked
gguf_config       a .gguf file's metadata as the keys of config.json
quantized         matrices in few bits, each several tensors of a folder
names             the names of the tensors in a file, and which rows of which weight they fill
gpt2              GPT-2's own names, in config.json and of its tensors
chat_template     a conversation as one text
folder_tokenizer  a folder's tokenizer
gguf_tokenizer    a .gguf file's tokenizer
narrow            a matrix into its storage in memory
to_device         a weight from its file to a GPU
to_device         a weight to a GPU, a few rows at a time
load              all of it together
write             a model to a folder, in another dtype
"""
