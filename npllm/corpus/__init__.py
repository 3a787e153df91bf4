"""Many prompts: a corpus goes through the model once, and nothing of it is lost or done twice.

records     a line of the input as a record; what a record asks for
work        the results of some records: generated, scored or embedded
memory      what that takes, and how many texts run at once
source      the lines of a .jsonl, .txt or .parquet file, or of stdin
journal     the output file, which is continued after any interruption
vectors     embeddings in safetensors files
run         all records of a source, window by window, into a journal
model_hash  which model it is
processes   several processes with the model on this machine
on_ray      the same on Ray Data, on one machine or many
"""
