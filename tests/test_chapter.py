"""What the chapter says about a model, checked on the default one: SmolLM2-135M-Instruct."""

import statistics

import numpy as np
import pytest
from default_model import default_lm, needs_default_model

import npllm
from npllm.apps.ablate import without_layers
from npllm.apps.chat import Chat
from npllm.inspect.funnel import funnel

pytestmark = [needs_default_model, pytest.mark.slow]


@pytest.fixture(scope="module")
def lm():
    return default_lm()


# "The feedforward neural network at a glance"


@pytest.fixture(scope="module")
def shawshank(lm):
    return without_layers(lm, lm.tokenizer.encode("The Shawshank"))


def test_the_shawshank_is_followed_by_redemption(lm, shawshank):
    assert lm.tokenizer.decode([shawshank.token]) == " Red"
    assert shawshank.probability == pytest.approx(0.787, abs=0.002)
    assert npllm.generate(lm, "The Shawshank", max_new_tokens=2).text == " Redemption"


def test_without_one_of_the_feedforward_networks_redemption_may_be_forgotten(lm, shawshank):
    """Each of the first eight is needed. Of the later ones, some do not matter and some work against it."""
    forgotten = [layer for layer, token in enumerate(shawshank.instead) if token != shawshank.token]
    assert forgotten == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 22, 24]
    assert all(shawshank.without[layer] < 0.01 for layer in (0, 1, 2, 3, 4, 6, 7, 11))
    assert all(shawshank.without[layer] > shawshank.probability for layer in (14, 17, 20, 26))


def test_redemption_needs_the_feedforward_networks_more_than_the_attention_layers(lm, shawshank):
    attention = without_layers(lm, lm.tokenizer.encode("The Shawshank"), part="attention")
    assert (attention.token, attention.probability) == (shawshank.token, shawshank.probability)
    assert [layer for layer, token in enumerate(attention.instead) if token != attention.token] == [0, 1, 3]
    assert statistics.median(attention.without) > 0.69
    assert statistics.median(shawshank.without) < 0.45


def test_a_raw_prompt_is_continued_and_the_same_prompt_said_in_a_chat_is_answered(lm):
    """The weights are the same; the chat format around the prompt makes the difference."""
    generator = npllm.pipeline("text-generation", model=lm, return_full_text=False, max_new_tokens=12)

    def said(text):
        return [{"role": "user", "content": text}]

    raw, asked = generator(["The Shawshank", said("The Shawshank")])
    assert raw[0]["generated_text"] == " Redemption, a film that has been widely praised for its"
    assert asked[0]["generated_text"] == 'The Shawshank refers to a prison in the film "'
    assert asked[0]["generated_text"] == "".join(
        step.text for step in Chat(lm).reply("The Shawshank", max_new_tokens=12)
    )
    raw, asked = generator(["What is the capital of France?", said("What is the capital of France?")])
    assert raw == [{"generated_text": ""}]  # an end token: in training, a question outside a chat ended the text
    assert asked == [{"generated_text": "The capital of France is Paris."}]


# "Choosing a Single Token from the Probability Distribution"


def test_the_funnel_of_the_capital_of_france(lm):
    ids = np.array(lm.tokenizer.encode("The capital of France is"))
    logits, _ = npllm.forward(ids, lm)
    steps = funnel(logits[-1], temperature=1.5, top_k=50, top_p=0.9, min_p=0.02, uniform=0.85)
    left = {step.name: step.left for step in steps}
    assert left == {"logits": 49152, "temperature": 49152, "top_k": 50, "top_p": 27, "min_p": 17, "draw": 1}
    paris = lm.tokenizer.encode(" Paris")[0]
    shares = [float(step.probabilities[paris]) for step in steps]
    assert shares == pytest.approx([0.773, 0.244, 0.476, 0.527, 0.576, 1.0], abs=0.002)
    assert int(np.argmax(steps[-1].probabilities)) == paris
