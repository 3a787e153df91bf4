"""The command line: one module per command, and what they share.

main           reads the arguments, runs one command, turns every error into one line and an exit code
parser         argparse, with errors of one line that say what was probably meant
signals        Ctrl-C before a command runs and after it
options        the flags that several commands share, and loading what they name
report         all output: results to stdout, everything else to stderr
generate       continue a prompt
turns          what a user types in a chat: a line, pasted lines, or a text between three quotes
history        what was typed, kept for the next chats
logprobs       the log-probabilities of new tokens, as a table or as records
chat_commands  /help, /reset, /retry, /undo, /system, /save and /load
chat           talk with a model
fill           the tokens in the place of [MASK]
batch          all prompts of a file, many at once
engines        where npllm batch runs, and how much memory it may take
tokenize       the tokens of a text
show           the model's structure
trace          every value of one forward pass, written to a file
inspect        what the model does with a prompt, in the terminal or as a page
lab            a page with a live model, in the browser
compare        the first step at which two runs differ
evaluate       perplexity, and the effect of rounding the weights
convert        a model written to a folder in another dtype
bench          timings of decoding, prefill, loading and the KV cache
models         the families that npllm computes
selftest       a device compared with the CPU
completion     a script with which a shell completes commands, options and files
"""
