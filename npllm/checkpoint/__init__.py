"""From the files of a checkpoint to an `LM`, and back.

hub               the folder or file that a model's name stands for
folder            Hugging Face layout: config.json and safetensors files
gguf              the .gguf file format
gguf_config       the configuration in a .gguf file
quantized         the matrices of a folder that `npllm convert` quantized
plan              which tensors of the files make which weight
sandbox           a chat template's sandbox
chat_template     a conversation as one text
folder_tokenizer  the tokenizer of a folder
gguf_tokenizer    the tokenizer of a .gguf file
narrow            a matrix from its file into few bits
to_device         a weight from its file to a GPU
weights           all weights into memory
load              a model's name to an `LM`
write             a model to a folder, in another dtype
"""
