"""From a checkpoint's files to an `LM`, and back.

hub_http          requests to the Hub, with limits
hub_api           the Hub's listing of a model, and the bytes of a file
hub_cache         a Hub model in the local cache
hub               the folder or file of a model's name
folder            Hugging Face layout: config.json and safetensors files
gguf              the .gguf file format
gguf_parts        a model in several .gguf files
gguf_config       the configuration in a .gguf file
quantized         the matrices in a folder that `npllm convert` quantized
parameters        tensors of transformers with names of their own
plan              which tensors make up which weight
child             a Python process that may die
origin            text that knows who wrote each character
sandbox           a chat template's sandbox
chat_template     a conversation as one text
tokenizer_check   the check of a folder's tokenizer, in a process that may die
folder_tokenizer  the tokenizer of a folder
tokenizer_probe   what that process runs
gguf_tokenizer    the tokenizer of a .gguf file
narrow            a matrix from its file, in 16 bits or fewer
to_device         a weight from its file to a GPU
weights           all weights into memory
load              from a model's name to an `LM`
write             a model to a folder, in another dtype
"""
