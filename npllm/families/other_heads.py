"""Heads that npllm does not compute, by the name of the class in config.json's architectures.

Source: the models of transformers, https://huggingface.co/docs/transformers/model_doc/auto
"""

import re

from ..errors import ModelFileError
from .keys import Keys

WHAT = {  # the end of the name: what it is
    "ForQuestionAnswering": "a question-answering head",
    "ForMultipleChoice": "a multiple-choice head",
    "ForNextSentencePrediction": "a head that says whether one text follows another",
    "ForConditionalGeneration": "a model with an encoder for text, images or sound",
    "ForImageTextToText": "a model with an image encoder",
    "RewardModel": "a reward head",
    "DoubleHeadsModel": "a model with two heads",
}
HEADLESS = re.compile(r"(?!.*(LMHead|For[A-Z])).*Model")  # Phi3Model, but not GPT2LMHeadModel
COMPUTED = ("ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification")  # in a masked LM
HEADS = "a language model or a classifier (...ForSequenceClassification, ...ForTokenClassification)"


def check_head(keys: Keys, masked: bool) -> None:
    """Refuse a checkpoint whose head npllm does not compute.

    masked : whether the family is one of masked language models
    """
    head = "a masked-LM head" if masked else "an LM head"
    for name in keys.strings("architectures"):
        what = next((what for ending, what in WHAT.items() if name.endswith(ending)), None)
        if what is None and HEADLESS.fullmatch(name):
            what = "a model without a head, which turns texts into vectors"
        elif masked and what is None and not name.endswith(COMPUTED):
            what = "not a masked language model"
        elif not masked and name.endswith("ForMaskedLM"):
            what = "a masked language model, which npllm computes only for BERT"
        if what is not None:
            raise ModelFileError(
                f"{keys.where}: architectures: expected {HEADS}, got {name[:80]}: {what}; use a checkpoint"
                f" with {head} or a classifier"
            )
