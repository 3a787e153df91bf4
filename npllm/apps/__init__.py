"""What is built on the loop.

constraints  tokens that generation_config.json rules out, and lengths
calls        `generate`, `stream` and `steps`, of text or ids, or a list of prompts
generation   the result of a generation
batches      several texts at once
pipeline     the chapter's `pipeline`: prompts in, texts out
chat         a conversation over one KV cache
chat_file    a conversation in a file
speculation  draft tokens cheaply, verify them in one pass
encoder      a whole text in one pass
fill         the tokens in the place of [MASK]
classify     the labels of a text, or of each of its tokens
evaluate     perplexity, and the divergence from a reference
ablate       the next token without one layer's network
packing      short documents packed into the rows of a training batch
bench        the loop timed with and without the KV cache
speed        the loop compared with the memory's bandwidth
selftest     a device compared with the CPU
"""
