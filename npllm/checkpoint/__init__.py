"""From the files of a checkpoint to `LM`.

hub               a name to a folder or a .gguf file
stored            a tensor in a file, read in small pieces and widened to float32
folder            Hugging Face layout: JSON files, safetensors
gguf              the .gguf file format
gguf_config       a .gguf file's metadata as the keys of config.json
names             the names of the tensors in a file, and which rows of which weight they fill
gpt2              GPT-2's own names, in config.json and of its tensors
chat_template     a conversation as one text
folder_tokenizer  a folder's tokenizer
gguf_tokenizer    a .gguf file's tokenizer
load              all of it together
"""
