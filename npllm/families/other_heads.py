"""Heads that npllm does not compute, by the name of the class in config.json's architectures.

Source: the models of transformers, https://huggingface.co/docs/transformers/model_doc/auto
"""

import re

from ..errors import ModelFileError
from .keys import Keys

WHAT = {  # the end of the name: what it is
    "ForQuestionAnswering": "a question-answering head, which marks the answer in a text",
    "ForMultipleChoice": "a multiple-choice head",
    "ForNextSentencePrediction": "a head that says whether one text follows another",
    "ForConditionalGeneration": "a model with an encoder, of text, images or sound",
    "ForImageTextToText": "a model with an encoder of images",
    "RewardModel": "a reward head",
    "DoubleHeadsModel": "two heads",
}
HEADLESS = re.compile(r"(?!.*(LMHead|For[A-Z])).*Model")  # Phi3Model, but not GPT2LMHeadModel
COMPUTED = ("ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification")  # in a masked LM
HEADS = "a language model or a classifier (...ForSequenceClassification, ...ForTokenClassification)"


def check_head(keys: Keys, masked: bool) -> None:
    """Refuse a checkpoint whose head npllm does not compute.

    masked : whether the family is one of masked language models
    """
    for name in keys.strings("architectures"):
        what = next((what for ending, what in WHAT.items() if name.endswith(ending)), None)
        if what is None and HEADLESS.fullmatch(name):
            what = "a model without a head, which turns texts into vectors"
        elif masked and what is None and not name.endswith(COMPUTED):
            what = "another head than that of a masked language model"
        elif not masked and name.endswith("ForMaskedLM"):
            what = "a masked language model, which npllm computes only of BERT"
        if what is not None:
            raise ModelFileError(
                f"{keys.where}: architectures: expected {HEADS}, got {name[:80]}: {what}; take a checkpoint with"
                " another head"
            )
