"""`npllm.look`: one pass over a text, and each view of it as one expression.

    r = npllm.look(lm, "The capital of France is")
    r.attention(5, 3)           what head 3 of layer 5 attends to
    r.lens()                    what each block would predict
    r.without(head=(5, 3))      the same text without that head
    r.attribution(" Paris")     which parts of the model said it

The arrays are `Labelled`: they show themselves, as a table or a heat map. Other modules of this folder compute them.

Source: the chapter's figures, as named there.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

from ..arrays import Float
from ..errors import UsageError
from ..lm import LM
from ..loop import as_ids
from ..text.arguments import check_model, checked, shown, whole_number
from .attribution import attribution
from .contributions import Contributions, contributions
from .edits import Edit, edit_tap, edit_text
from .frame import Frame, frame
from .heads import KINDS, head_scores, induction_scores, without_first_token
from .labelled import Labelled, labelled
from .lens import likeliest, shares
from .look import first_residual, lens, log_given, place_of_answer
from .look import look as look_at
from .patching import patching_grid
from .tokens import named_token, token_labels

SHOWN = 10  # of the likeliest next tokens
HINT = "more: .attention(layer, head) .lens() .heads() .attribution(token) .without(head=(layer, head)) .show()"
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


def look(lm: LM, prompt: Prompt) -> "View":
    """One pass over a prompt, to look inside.

    Parameters
    ----------
    prompt : text; token ids; or the messages of a chat, [{"role": "user", "content": "..."}]

    Raises
    ------
    UsageError : the prompt is empty or too long, or has an id outside the vocabulary
    ModelFileError : the prompt is a text, and the model has no tokenizer: pass ids
    NotEnoughMemoryError : the values of the pass do not fit

    >>> import npllm
    >>> r = npllm.look(npllm.load(), "The capital of France is")
    >>> r.next.labels[0][0], r.attention(5, 3).shape, r.without(feedforward=1).next.labels[0][0]
    (' Paris', (5, 5), ' the')
    """
    check_model(lm)
    given: Any = prompt
    if isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], Mapping):
        if lm.tokenizer is None:
            raise UsageError("prompt: expected token ids, because the model has no tokenizer, got messages")
        given = lm.tokenizer.chat_ids(given)
    return View(lm, as_ids(lm, given))


class View:
    """One pass over a text, through the whole model or with changes to it: what `npllm.look` returns.

    lm, ids : the model and the text
    tokens : the text of each id
    edits : the parts that are switched off or scaled
    original : the view of the same text without edits; itself, if it has none
    place : the token whose prediction is shown: the last one, or for a masked language model the mask
    """

    def __init__(self, lm: LM, ids: Sequence[int], edits: Sequence[Edit] = (), original: "View | None" = None) -> None:
        self.lm, self.edits = lm, list(edits)
        self.original = self if original is None else original
        self.seen = look_at(lm, ids, tap=edit_tap(lm, self.edits))
        self.ids, self.place = self.seen.ids, place_of_answer(lm, self.seen.ids)
        self.tokens = token_labels(lm, self.ids)
        self.layers = [str(layer) for layer in range(lm.config.num_hidden_layers)]  # labels, as the tokens are

    @property
    def logits(self) -> Float[np.ndarray, "T V"]:
        """The logits after each token."""
        return self.seen.logits

    @property
    def logprobs(self) -> Labelled:
        """[T]: the logarithm of each token's probability, given the preceding ones; NaN for the first."""
        return labelled(log_given(self.seen), "log probability, given the preceding tokens", {"token": self.tokens})

    @property
    def next(self) -> Labelled:
        """[10]: the probabilities of the likeliest next tokens, the likeliest first."""
        logits = self.logits[self.place]
        best = likeliest(logits, min(SHOWN, len(logits)))
        title = f"token in place {self.place}" if self.lm.config.bidirectional else "next token"
        return labelled(shares(logits, best), title, {"next token": token_labels(self.lm, best.tolist())}, share=True)

    def probability(self, token: str | int) -> float:
        """The probability that this is the next token: " Paris", or its id."""
        return float(shares(self.logits[self.place], np.array([named_token(self.lm, token)]))[0])

    def attention(self, layer: int | None = None, head: int | None = None, *, first_token: bool = True) -> Labelled:
        """[T, T]: the attention weights of a head, a row for each query; [N, T, T] of a layer; [L, N, T, T] of all.

        first_token : False leaves the first token out, which gets most of the weight in many heads, so that the others
            share it (`heads.without_first_token`)
        """
        layers = chosen("layer", layer, self.lm.config.num_hidden_layers)
        heads = chosen("head", head, self.lm.config.num_attention_heads)
        weights = np.stack([self.seen.values[f"layers.{i}.attention.weights"][heads] for i in layers])
        title = "attention weights" if first_token else "attention weights without the first token"
        axes = {
            "layer": list(map(str, layers)),
            "head": list(map(str, heads)),
            "query": self.tokens,
            "key": self.tokens,
        }
        found = labelled(weights if first_token else without_first_token(weights), title, axes, share=True)
        one: Labelled = found[slice(None) if layer is None else 0, slice(None) if head is None else 0]
        return one

    def lens(self, token: str | int | None = None) -> Labelled:
        """[L + 1, T]: the logit lens, before the first block and after each: the probability of the likeliest token.

        token : the token whose probability it is instead

        The likeliest tokens are in its `words`. The last row is what the model predicts.
        """
        every = range(len(self.ids))
        rows = [first_residual(self.seen).replace("_", " "), *(f"block {layer}" for layer in self.layers)]
        axes = {"after": rows, "token": self.tokens}
        if token is not None:
            of_token = lens(self.seen, every, 1, named_token(self.lm, token)).next
            return labelled(of_token, f"logit lens: probability of {token!r}", axes, share=True)
        best = lens(self.seen, every, 1)
        words = np.array(token_labels(self.lm, best.ids.ravel().tolist()), dtype=object).reshape(best.ids.shape[:2])
        return labelled(best.probabilities[..., 0], "logit lens: the likeliest token", axes, share=True, words=words)

    def heads(self) -> Labelled:
        """[4, L, N]: what each head looks at, as a share of its attention; `heads.KINDS` defines the kinds."""
        scores = head_scores(self.lm, self.seen, self.induction)
        heads = [str(head) for head in range(self.lm.config.num_attention_heads)]
        values = np.stack([getattr(scores, kind) for kind in KINDS])
        axes = {"kind": list(KINDS), "layer": self.layers, "head": heads}
        return labelled(values, "share of each head's attention", axes, share=True)

    @cached_property
    def induction(self) -> Float[np.ndarray, "L N"]:
        """The induction scores of the heads, which do not depend on the text."""
        return induction_scores(self.lm, tap=edit_tap(self.lm, self.edits))

    def attribution(self, token: str | int | None = None, *, against: str | int | None = None) -> Contributions:
        """What each part of the model added to the logit of a token, by default the likeliest. Their sum is the logit
        (before its cap, in a model that caps logits).

        against : a second token, whose logit is subtracted
        """
        answer = int(self.logits[self.place].argmax()) if token is None else named_token(self.lm, token)
        other = None if against is None else named_token(self.lm, against)
        found = attribution(self.lm, self.ids, answer, self.place, against=other, edits=self.edits)
        names = [f"'{name}'" for name in token_labels(self.lm, [answer, *([] if other is None else [other])])]
        return contributions(found, " minus ".join(names))

    def without(
        self,
        *,
        head: tuple[int, int] | Sequence[tuple[int, int]] = (),
        attention: int | Sequence[int] = (),
        feedforward: int | Sequence[int] = (),
        neuron: tuple[int, int] | Sequence[tuple[int, int]] = (),
        scale: float = 0.0,
    ) -> "View":
        """The same text through the model without these parts, in addition to those that are already off.

        Parameters
        ----------
        head, neuron : (layer, index), or several
        attention, feedforward : a layer, or several
        scale : what is left of the parts: 0.5 halves what they add

        Raises UsageError if there is no such part, or none is given.
        """
        scale = checked("scale", scale, Real, math.isfinite, "a finite number")
        given = {"head": head, "attention": attention, "feedforward": feedforward, "neuron": neuron}
        edits = [Edit(layer, part, at, scale) for part, where in given.items() for layer, at in places(part, where)]
        if not edits:
            raise UsageError("without: expected a part, such as head=(5, 3) or feedforward=1, got none")
        return View(self.lm, self.ids, [*self.edits, *edits], self.original)

    @property
    def change(self) -> Labelled:
        """[tokens, 2]: the probabilities of the likeliest next tokens in the original, and in this view."""
        both = [view.logits[self.place] for view in (self.original, self)]
        ids = np.array([*dict.fromkeys(i for logits in both for i in likeliest(logits, SHOWN // 2).tolist())])
        runs = ["original", "changed" if self.edits else "same"]
        axes = {"next token": token_labels(self.lm, ids.tolist()), "run": runs}
        scaled = any(edit.scale for edit in self.edits)
        what = ", ".join(edit_text(edit) + ("=0" if scaled and not edit.scale else "") for edit in self.edits)
        title = f"probability {'with' if scaled else 'without'} {what or 'changes'}"
        return labelled(np.stack([shares(logits, ids) for logits in both], axis=-1), title, axes, share=True)

    def patched_from(
        self, other: "View | Prompt", token: str | int | None = None, *, part: str = "residual"
    ) -> Labelled:
        """[L, T]: how much of the other text's answer each of its values restores in this run: 0 nothing, 1 all of it.

        The measure is the logit of that answer minus that of this text's; if the two answers are the same token, its
        probability. See patching.py.

        Parameters
        ----------
        other : a text of as many tokens, or a view of it
        token : the answer, by default the other text's likeliest
        part : the value that is put in: "residual", after the block, or what "attention" or "feedforward" adds

        Raises UsageError if the texts are not equally long, if the measure is the same in both, and for views with
        edits or of another model.
        """
        source = other if isinstance(other, View) else look(self.lm, other)
        if source.lm is not self.lm:
            raise UsageError("patched_from: expected a view of the same model")
        if self.edits or source.edits:
            raise UsageError("patched_from: expected views without edits; take their .original")
        own = int(self.logits[self.place].argmax())
        answer = int(source.logits[source.place].argmax()) if token is None else named_token(self.lm, token)
        against = own if own != answer else None
        position = self.place - len(self.ids)
        grid = patching_grid(self.lm, source.ids, self.ids, answer, part, against=against, position=position)
        names = [f"'{name}'" for name in token_labels(self.lm, [answer, *([] if against is None else [against])])]
        title = f"how much of {' over '.join(names)} the other text's {part} restores"
        return labelled(grid, title, {"layer": self.layers, "token": self.tokens})

    def show(self, *only: str, head: tuple[int, int] | None = None) -> Frame:
        """Sections of the page that `npllm inspect --html` writes, in a frame of the notebook.

        only : "tokens", "attention", "lens", "norms", "funnel", "flow", "cache", "cost"; by default the first three, or
            those of them that are small enough for a long text
        head : the only (layer, head) whose attention map is shown
        """
        return frame(self.seen, only, head)

    def __repr__(self) -> str:
        config, text = self.lm.config, " ".join(f"'{token}'" for token in self.tokens)
        text = text if len(text) <= 190 else f"{text[:95]} ... {text[-90:]}"
        head = f"{len(self.ids)} tokens through {config.num_hidden_layers} blocks ({config.family}): {text}"
        hint = [] if config.bidirectional else [HINT]
        return "\n".join([head, repr(self.change)] if self.edits else [head, repr(self.next), *hint])

    def _repr_html_(self) -> str | None:
        if self.lm.config.bidirectional:
            return None  # there is no page of it; the notebook shows the text
        return ((self.change._repr_html_() or "") if self.edits else "") + self.show()._repr_html_()


def chosen(what: str, index: int | None, count: int) -> list[int]:
    """The layers or heads that are meant: one, or for None all. Raises UsageError if there is no such one."""
    if index is None:
        return list(range(count))
    return [whole_number(what, index, 0, count - 1, f"0 to {count - 1} (there are {count} {what}s)")]


def places(part: str, given: Any) -> list[tuple[int, int | None]]:
    """What `without` got for a part, as pairs of a layer and an index."""
    if part not in ("head", "neuron"):
        return [(layer, None) for layer in (given if isinstance(given, Sequence) else [given])]
    pairs = [given] if isinstance(given, tuple) and given and not isinstance(given[0], Sequence) else given
    if not isinstance(pairs, Sequence) or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in pairs):
        raise UsageError(f"{part}: expected (layer, {part}), or a list of such pairs, got {shown(given)}")
    return [(layer, index) for layer, index in pairs]
