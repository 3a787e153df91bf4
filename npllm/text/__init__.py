"""Where text enters and leaves: the ids of a conversation, and the text of ids that arrive one at a time.

one_line        text for a terminal: one line, control characters escaped
brief           records on one short line, for their repr
stderr          lines on stderr
similar         what a mistyped name may have meant
arguments       the arguments of the public calls
processors      the caller's own functions of the logits
utf8            the check that a text can be encoded as UTF-8
token_ids       the checks of token ids
library_errors  the errors of the tokenizers library as npllm's
chat_ids        the ids of a conversation, with no control token from a user
stream          the text of ids that arrive one at a time, and stop strings
end_ids         the tokens that end a text
"""
