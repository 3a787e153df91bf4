"""Batch processing: run a model over a corpus, losing no record and computing none twice.

records     parsing and validating records
names       keys of a record that look like misspelt options, or those of another library
work        the results of some records: generated, scored or embedded
memory      how much memory that takes, and how many texts fit at once
source      the lines of a .jsonl, .txt or .parquet file, or of stdin
journal     the output file, which a rerun resumes
vectors     embeddings in safetensors or parquet files
run         all records of a source, window by window, into a journal
model_hash  a fingerprint of the model
processes   local worker processes, each with its own model
on_ray      the same on Ray Data, on one machine or many
"""
