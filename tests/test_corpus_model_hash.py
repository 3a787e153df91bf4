"""Which model it is. test_corpus_run.py has the weights and the configuration."""

from checkpoints import write_folder

import npllm
from npllm.checkpoint.chat_template import ChatRenderer
from npllm.corpus.model_hash import model_hash
from npllm.tokenizer import Tokenizer


def test_a_hash_is_that_of_the_tokenizer_the_chat_template_and_the_end_tokens(tmp_path):
    write_folder(tmp_path / "tiny", model_type="llama")
    talker = npllm.load(tmp_path / "tiny", kernels=False)
    tokenizer = talker.tokenizer
    render = tokenizer.render or ChatRenderer("", {})
    others = [
        Tokenizer(tokenizer.backend, tokenizer.end_ids, "other", render),
        Tokenizer(
            tokenizer.backend, tokenizer.end_ids, tokenizer.chat_template, render._replace(special_tokens={"a": "b"})
        ),
        Tokenizer(tokenizer.backend, {5, *tokenizer.end_ids}, tokenizer.chat_template, render),
        Tokenizer(tokenizer.backend, tokenizer.end_ids, tokenizer.chat_template, None),
        None,
    ]
    hashes = {model_hash(talker._replace(tokenizer=other)) for other in others}
    assert len(hashes | {model_hash(talker)}) == 6
    same = Tokenizer(tokenizer.backend, tokenizer.end_ids, tokenizer.chat_template, tokenizer.render)
    assert model_hash(talker._replace(tokenizer=same)) == model_hash(talker)
