"""Draw the figures of docs/ from the default model.

    python tools/docs/figures.py [DIR]           draw them as SVG files into DIR (default: docs/figures)
    python tools/docs/figures.py --check [DIR]   exit with 1 if a file in DIR differs from a fresh drawing

Each function below `# The figures` draws the figure of its name. All values are real: computed from the text named on
the page, or read from docs/performance.json (`performance`). Text is drawn as outlines, so that a figure looks the same
on every machine; the alt text on the page contains its words. Nothing is drawn where the paper is to be seen, and each
figure is written a second time for dark paper, as NAME.dark.svg; docs/extensions/layout.py puts both on the page.
"""

import argparse
import json
import re
import sys
from dataclasses import replace
from functools import cache
from io import BytesIO
from math import prod
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure

import npllm
from npllm import sampling
from npllm.apps.ablate import without_layers
from npllm.apps.packing import first_fit, pack
from npllm.attention import attention_weights, relevance_scores
from npllm.block import original_block
from npllm.cache import empty_cache, kv_cache_bytes
from npllm.embedding import embed
from npllm.flash import TILE
from npllm.inspect.cost import slow_memory_bytes
from npllm.inspect.funnel import funnel as funnel_steps
from npllm.linear import linear
from npllm.masks import bidirectional, block_local, causal, fixed, same_document, sliding_window, strided
from npllm.norm import rms_norm
from npllm.positions import sinusoidal_positions
from npllm.rope import apply_rope, rope_tables
from npllm.sampling import softmax
from npllm.shapes import GPT2BlockWeights

FOLDER = Path(__file__).parents[2] / "docs" / "figures"
WIDTH = 7.2  # inches; the page shows it 1.4 times as large
# Distinguishable in grayscale; bars have hatches as well. OWN is visible on white and on dark paper.
DARK, MIDDLE, LIGHT, PALE, OWN = "#123a6b", "#7d7c78", "#fdd835", "#e4e4e4", "#2f6db5"
THREE = ListedColormap(["none", LIGHT, OWN])  # for masks: masked, visible, the token itself
ON_DARK = {DARK: "#8ab4f8", LIGHT: "#806600"}  # what these become on dark paper; grays are inverted
STYLE = {
    "svg.hashsalt": "npllm",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "hatch.linewidth": 0.6,
    "image.cmap": "cividis",
    "figure.constrained_layout.use": True,
}

FRANCE = "The capital of France is"
DOG = "The dog chased the squirrel because it"
DOCUMENTS = (  # for packing
    DOG,
    "The Shawshank",
    "Sarah fed the cat because it",
    "What is the capital of France?",
    "Dear Sarah,",
    FRANCE,
    "Attention is all you need.",
    "Hello",
)
EMAIL = "Write an email apologizing to Sarah for the tragic gardening mishap. Explain how it happened."


class Pass(NamedTuple):
    """One forward pass with all its tapped values."""

    ids: np.ndarray
    tokens: list[str]
    seen: dict[str, np.ndarray]
    logits: np.ndarray


@cache
def model() -> npllm.LM:
    return npllm.load()


@cache
def trace(text: str) -> Pass:
    lm, seen = model(), {}
    ids = np.array(lm.tokenizer.encode(text))
    logits, _ = npllm.forward(ids, lm, tap=npllm.record(seen))
    return Pass(ids, [token(i) for i in ids], seen, logits)


def token(token_id: int) -> str:
    """A token's text as a Python literal, which shows spaces and newlines."""
    return repr(model().tokenizer.decode([int(token_id)]))


def words(tokens: list[str]) -> list[str]:
    """The tokens of a sentence without quotes and spaces."""
    return [word.strip("' ") for word in tokens]


def likeliest(probabilities: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-probabilities, kind="stable")[:count]


def box(axes: Axes, x: float, y: float, text: str, fill: str = "white", **options: object) -> None:
    """Draw text in a frame."""
    color = "white" if fill in (DARK, MIDDLE) else "black"
    frame = {"boxstyle": "round,pad=0.35", "facecolor": fill, "edgecolor": "black", "linewidth": 0.8}
    axes.text(x, y, text, ha="center", va="center", color=color, bbox=frame, **options)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **options: object) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 0.9} | options)


def canvas(height: float, columns: float, rows: float) -> tuple[Figure, Axes]:
    """Empty axes for boxes and arrows; coordinates are columns and rows from the top left."""
    figure, axes = plt.subplots(figsize=(WIDTH, height))
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.axis("off")
    return figure, axes


def cells(axes: Axes, rows: int, columns: int) -> None:
    """Draw lines between the cells of a mask."""
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="black", linewidth=0.5)
    axes.tick_params(which="both", length=0)


def heat(axes: Axes, values: np.ndarray, **options: object) -> matplotlib.image.AxesImage:
    """Draw a matrix as colors, framed because its lightest cells are almost white."""
    axes.spines[:].set_visible(True)
    return axes.imshow(values, aspect="auto", interpolation="nearest", **options)


# The figures


def loop() -> Figure:
    """Figures 3-1 to 3-3."""
    lm, count = model(), 5
    ids = lm.tokenizer.encode(EMAIL)
    start = len(ids)
    figure, axes = canvas(2.7, 10.2, count + 0.5)
    axes.text(0.2, 0.3, "the text so far", fontweight="bold", va="center")
    axes.text(8.2, 0.3, "the next token", fontweight="bold", va="center")
    for row in range(1, count + 1):
        logits, _ = npllm.forward(np.array(ids), lm)
        chosen = int(logits[-1].argmax())
        axes.text(0.2, row, "Write an email …", va="center")
        for column, position in enumerate(range(start - 1, len(ids))):
            box(axes, 2.9 + column, row, token(ids[position]), PALE if position < start else LIGHT)
        arrow(axes, (2.9 + len(ids) - start + 1.45 - 0.9, row), (8.1, row))
        box(axes, 8.6, row, token(chosen), DARK)
        axes.text(9.3, row, f"{softmax(logits[-1])[chosen]:.0%}", va="center")
        ids.append(chosen)
    return figure


def components() -> Figure:
    """Figure 3-4."""
    lm, france = model(), trace(FRANCE)
    config = lm.config
    figure, (axes, bars) = plt.subplots(1, 2, figsize=(WIDTH, 4.2), width_ratios=[3, 2])
    axes.set(xlim=(0, 10), ylim=(10.2, -0.2))
    axes.axis("off")
    stages = [
        ("tokenizer", PALE, f"{len(france.ids)} token ids:\n{', '.join(map(str, france.ids))}"),
        ("embeddings", PALE, f"{len(france.ids)} vectors of {config.hidden_size} numbers"),
        (f"{config.num_hidden_layers} Transformer blocks", LIGHT, "the same shape, after each of them"),
        ("LM head", PALE, f"{config.vocab_size:,} logits for each of {len(france.ids)} places"),
        ("softmax, choice", DARK, f"the token {token(france.logits[-1].argmax())}"),
    ]
    box(axes, 2.6, 0.2, f'"{FRANCE}"')
    for row, (name, fill, result) in enumerate(stages):
        y = 2 + 2 * row - 0.2
        arrow(axes, (2.6, y - 1.35), (2.6, y - 0.45))
        box(axes, 2.6, y, name, fill)
        axes.text(5.4, y, result, va="center")
    blocks = lm.weights.layers
    parts = {
        "embeddings\n(also LM head)": [lm.weights.embed_tokens],
        "attention,\nall blocks": [weight for b in blocks for weight in (b.qkv_proj, b.o_proj)],
        "feedforward,\nall blocks": [weight for b in blocks for weight in (b.gate_up_proj, b.down_proj)],
    }
    counts = [sum(prod(weight.shape) for weight in weights) / 1e6 for weights in parts.values()]
    drawn = bars.bar(list(parts), counts, color=[PALE, LIGHT, LIGHT], edgecolor="black")
    drawn[2].set_hatch("//")
    bars.bar_label(drawn, fmt="%.1f")
    bars.set(title="Where the parameters are", ylabel="millions of parameters")
    bars.tick_params(axis="x", labelsize=8)
    return figure


def vocabulary() -> Figure:
    """Figure 3-5."""
    lm, shown = model(), 40
    ids = [0, 1, 2, 3, *sorted(trace(FRANCE).ids), lm.config.vocab_size - 1]
    figure, axes = plt.subplots(figsize=(WIDTH, 3.2))
    image = heat(axes, embed(np.array(ids), lm.weights.embed_tokens)[:, :shown], vmin=-0.4, vmax=0.4)
    axes.set_yticks(range(len(ids)), [f"{token(i)}   {i}" for i in ids])
    axes.set(xlabel=f"the first {shown} of {lm.config.hidden_size} dimensions", ylabel="token and its id")
    figure.colorbar(image, label="value", extend="both")
    return figure


def next_token() -> Figure:
    """Figure 3-6."""
    figure, columns = plt.subplots(1, 2, figsize=(WIDTH, 3))
    for axes, text in zip(columns, (FRANCE, EMAIL), strict=True):
        probabilities = softmax(trace(text).logits[-1])
        ids = likeliest(probabilities, 8)
        bars = axes.barh(range(len(ids)), probabilities[ids], color=[DARK] + [MIDDLE] * (len(ids) - 1))
        axes.bar_label(bars, [f"{p:.1%}" for p in probabilities[ids]], padding=3)
        axes.set_yticks(range(len(ids)), [token(i) for i in ids])
        axes.invert_yaxis()
        title = f"{text if len(text) < 30 else '… ' + text[-24:]} …"
        axes.set(title=title, xlabel="probability to be the next token", xlim=(0, 1.25 * probabilities.max()))
    return figure


def decoding() -> Figure:
    """Figure 3-7."""
    logits, draws, count = trace(EMAIL).logits[-1], 1000, 8
    probabilities, random = softmax(logits), np.random.default_rng(1)
    drawn = np.bincount([int(sampling.draw(logits, random.random())) for _ in range(draws)], minlength=len(logits))
    ids = likeliest(probabilities, count)
    rows = {
        "probability": (probabilities, DARK, ""),
        f"drawn, of {draws:,} draws": (drawn / draws, LIGHT, "//"),
        "greedy decoding": (np.arange(len(logits)) == probabilities.argmax(), PALE, ".."),
    }
    figure, axes = plt.subplots(figsize=(WIDTH, 2.9))
    for shift, (label, (shares, color, hatch)) in enumerate(rows.items()):
        shares = [*shares[ids], 1 - shares[ids].sum()]
        places = np.arange(count + 1) + (shift - 1) * 0.27
        axes.bar(places, shares, 0.27, label=label, color=color, hatch=hatch, edgecolor="black", linewidth=0.6)
    axes.set_xticks(range(count + 1), [*(token(i) for i in ids), "all\nothers"])
    axes.set(ylabel="share", ylim=(0, 1.03))
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(frameon=False)
    return figure


def funnel() -> Figure:
    """Figure 3-7, with the filters applied before the draw."""
    logits, count = trace(EMAIL).logits[-1], 10
    options = {"temperature": 0.7, "top_k": 8, "top_p": 0.95, "min_p": 0.1}
    steps = funnel_steps(logits, uniform=0.5, **options)
    ids = likeliest(softmax(logits), count)
    figure, panels = plt.subplots(1, len(steps), figsize=(WIDTH, 2.9), sharex=True, sharey=True)
    for axes, step in zip(panels, steps, strict=True):
        axes.barh(range(count), step.probabilities[ids], color=DARK if step.name == "draw" else MIDDLE)
        axes.set_title(f"{step.name.replace('_', '-')} {options.get(step.name, '')}\n{step.left:,} left", fontsize=8)
        axes.set(xlim=(0, 1), xticks=[0, 0.5, 1])
        axes.set_xticklabels(["0", ".5", "1"])
    panels[0].set_yticks(range(count), [token(i) for i in ids])
    panels[0].invert_yaxis()
    figure.supxlabel("probability", fontsize=9)
    return figure


def streams() -> Figure:
    """Figures 3-8 and 3-9."""
    france, layers = trace(FRANCE), model().config.num_hidden_layers
    names = ["embedding", *(f"layers.{layer}.residual_after_feedforward" for layer in range(layers))]
    sizes = np.array([np.linalg.norm(france.seen[name], axis=-1) for name in names])
    figure, axes = plt.subplots(figsize=(WIDTH, 4.3))
    image = heat(axes, sizes, norm=LogNorm())
    for line in np.arange(0.5, len(france.ids) - 1):
        axes.axvline(line, color="white", linewidth=6)
    marked = [*range(5, layers, 5), layers - 1]
    axes.set_yticks([0, *(layer + 1 for layer in marked)], ["embedding", *(f"layer {layer}" for layer in marked)])
    axes.set_xticks(range(len(france.ids)), france.tokens)
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
    for column, logits in enumerate(france.logits):
        best = int(logits.argmax())
        last = column == len(france.ids) - 1
        arrow(axes, (column, layers + 0.5), (column, layers + 2.6))
        box(axes, column, layers + 3.6, f"{token(best)} {softmax(logits)[best]:.0%}", DARK if last else "white")
    axes.set_ylim(layers + 5, -0.5)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="length of the vector")
    return figure


def cache_use() -> Figure:
    """Figure 3-10."""
    lm, new = model(), 5
    prompt = [int(i) for i in trace(FRANCE).ids]
    ids = prompt + npllm.generate(lm, prompt, max_new_tokens=new).ids
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 2.9), sharey=True)
    for axes, use_cache in zip(panels, (False, True), strict=True):
        state, cached = np.zeros((new, len(ids) - 1)), empty_cache(lm.config, len(ids), like=lm.weights.norm)
        for step in range(new):
            if not use_cache:
                cached["length"] = 0
            end, first, seen = len(prompt) + step, cached["length"], {}
            tap = npllm.record(seen, "embedding")
            npllm.transform(np.array(ids[first:end]), lm, cached, tap=tap)
            computed = len(seen["embedding"])  # rows that went through the blocks in this pass
            state[step, : end - computed], state[step, end - computed : end] = 1, 2
        axes.imshow(state, cmap=THREE, vmin=0, vmax=2, aspect="auto")
        cells(axes, *state.shape)
        axes.set_xticks(range(len(ids) - 1), [token(i).strip("' ") for i in ids[:-1]], rotation=60)
        axes.set_yticks(range(new), range(1, new + 1))
        name = "with the cache" if use_cache else "without a cache"
        axes.set(title=f"{name}: {int((state == 2).sum())} streams computed", xlabel="token")
    panels[0].set_ylabel("new token number")
    colors = {"computed in this step": OWN, "keys and values from the cache": LIGHT}
    patches = [plt.Rectangle((0, 0), 1, 1, facecolor=color, edgecolor="black") for color in colors.values()]
    figure.legend(patches, list(colors), loc="outside lower center", ncols=2)
    return figure


def stack() -> Figure:
    """Figure 3-11."""
    lm, france = model(), trace(FRANCE)
    layers = lm.config.num_hidden_layers
    after = np.stack([france.seen[f"layers.{layer}.residual_after_feedforward"][-1] for layer in range(layers)])
    probabilities = softmax(npllm.lm_head(rms_norm(after, lm.weights.norm, lm.config.rms_norm_eps), lm))
    steps = np.diff(np.vstack([france.seen["embedding"][-1], after]), axis=0)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(WIDTH, 4.2), sharex=True, height_ratios=[3, 2])
    markers = {" Paris": ("o-", DARK), " the": ("s--", MIDDLE), " capital": ("^:", "black")}
    for name, (style, color) in markers.items():
        share = probabilities[:, lm.tokenizer.encode(name)[0]]
        top.plot(range(layers), share, style, color=color, markersize=4, label=repr(name))
    top.set(ylabel="probability, if the LM head\ncame after this layer", ylim=(-0.02, 1))
    top.legend(frameon=False, loc="upper left")
    bottom.bar(range(layers), np.linalg.norm(steps, axis=-1), color=DARK)
    bottom.set(xlabel="layer", ylabel="length of what the\nblock adds", xticks=[*range(0, layers, 5), layers - 1])
    return figure


def block_parts() -> Figure:
    """Figure 3-12."""
    france, layers = trace(FRANCE), model().config.num_hidden_layers
    figure, axes = plt.subplots(figsize=(WIDTH, 2.7))
    for name, style, color in (("attention", "o-", DARK), ("feedforward", "s--", MIDDLE)):
        size = [np.linalg.norm(france.seen[f"layers.{layer}.{name}.output"][-1]) for layer in range(layers)]
        axes.plot(range(layers), size, style, color=color, markersize=4, label=f"what {name} adds")
    ticks = [*range(0, layers, 5), layers - 1]
    axes.set(xlabel="layer", ylabel="length of the vector", yscale="log", xticks=ticks)
    axes.legend(frameon=False)
    return figure


def knowledge() -> Figure:
    """Figure 3-13."""
    lm, layers = model(), model().config.num_hidden_layers
    ids = lm.tokenizer.encode("The Shawshank")
    figure, axes = plt.subplots(figsize=(WIDTH, 2.9))
    for part, shift, color, hatch in (("feedforward", -0.21, DARK, ""), ("attention", 0.21, LIGHT, "//")):
        result = without_layers(lm, ids, part)
        label, places = f"without {part} in this layer", np.arange(layers) + shift
        axes.bar(places, result.without, 0.42, label=label, color=color, hatch=hatch, edgecolor="black", linewidth=0.4)
    axes.axhline(result.probability, color="black", linestyle=":", label="the whole model")
    ticks = [*range(0, layers, 5), layers - 1]
    axes.set(xlabel="layer", ylabel=f"probability of {token(result.token)}", ylim=(0, 1.28), xticks=ticks)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.legend(frameon=False, ncols=2, loc="upper left", fontsize=8)
    return figure


def context() -> Figure:
    """Figure 3-14."""
    dog, layers = trace(DOG), model().config.num_hidden_layers
    weights = np.stack([dog.seen[f"layers.{layer}.attention.weights"][:, -1] for layer in range(layers)])  # [L, N, S]
    rows = {
        "mean of all 270 heads": (weights.mean((0, 1)), PALE, ""),
        "layer 9, head 4": (weights[9, 4], LIGHT, "//"),
        "layer 27, head 2": (weights[27, 2], DARK, ""),
    }
    figure, axes = plt.subplots(figsize=(WIDTH, 2.7))
    for shift, (label, (share, color, hatch)) in enumerate(rows.items()):
        places = np.arange(len(share)) + (shift - 1) * 0.27
        bars = axes.bar(places, share, 0.27, label=label, color=color, hatch=hatch, edgecolor="black", linewidth=0.6)
        axes.bar_label(bars, [f"{x:.2f}"[1:] for x in share], fontsize=7, padding=1)
    axes.set_xticks(range(len(dog.ids)), words(dog.tokens))
    axes.set(ylabel="attention of 'it'", xlabel="token looked at", ylim=(0, 0.6))
    axes.legend(frameon=False)
    return figure


# The head shown in the next figures: it attends to the dog and to the squirrel. Three query heads share its keys.
LAYER, HEAD, KV_HEAD = 9, 4, 1


def inside(name: str) -> np.ndarray:
    """A tapped value of that layer's attention, for the sentence DOG."""
    return trace(DOG).seen[f"layers.{LAYER}.attention.{name}"]


def two_steps() -> Figure:
    """Figures 3-15 and 3-16."""
    names = words(trace(DOG).tokens)
    last, weights = len(names) - 1, inside("weights")[HEAD, -1]
    figure, axes = canvas(3.1, 10.6, 6.4)
    labels = {1: "vectors in", 2.6: "1. relevance of\neach token to 'it'", 5.4: "2. combined:\nthe vector out"}
    for row, label in labels.items():
        axes.text(0, row, label, va="center", fontweight="bold")
    for column, (name, share) in enumerate(zip(names, weights, strict=True)):
        x = 3 + 1.18 * column
        box(axes, x, 1, name, LIGHT if column == last else PALE)
        axes.add_patch(plt.Rectangle((x - 0.4, 2), 0.8, 1.2, facecolor=str(1 - share), edgecolor="black"))
        axes.text(x, 2.6, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.5 else "black")
        axes.plot([x, 3 + 1.18 * last], [3.25, 5], color="black", linewidth=0.4 + 9 * share, solid_capstyle="butt")
    box(axes, 3 + 1.18 * last, 5.4, "it", DARK)
    return figure


def heads() -> Figure:
    """Figure 3-17."""
    names, weights = words(trace(DOG).tokens), inside("weights")
    figure, grid = plt.subplots(2, 5, figsize=(WIDTH, 3.4), sharex=True, sharey=True)
    panels = [*((f"head {n}", w) for n, w in enumerate(weights)), ("mean", weights.mean(0))]
    for axes, (title, share) in zip(grid.flat, panels, strict=True):
        image = heat(axes, share, vmin=0, vmax=1)
        axes.set_title(title, fontsize=8)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    figure.supxlabel("token looked at", fontsize=9)
    figure.supylabel("token that looks", fontsize=9)
    figure.colorbar(image, ax=grid, label="weight")
    return figure


def queries_keys_values() -> Figure:
    """Figures 3-18 and 3-19."""
    lm, dog = model(), trace(DOG)
    names, width = words(dog.tokens), lm.config.head_dim
    x = dog.seen[f"layers.{LAYER}.input_layernorm"]
    projections = linear(np.eye(x.shape[1], dtype=np.float32), lm.weights.layers[LAYER].qkv_proj)  # Wᵀ, packed or not
    rows = {  # which head of qkv_proj it is, and the result
        "query": (HEAD, inside("q")[HEAD]),
        "key": (lm.config.num_attention_heads + KV_HEAD, inside("k")[KV_HEAD]),
        "value": (lm.config.num_attention_heads + lm.config.num_key_value_heads + KV_HEAD, inside("v")[KV_HEAD]),
    }
    figure = plt.figure(figsize=(WIDTH, 4.4))
    grid = figure.add_gridspec(3, 3)
    left = figure.add_subplot(grid[1, 0])
    panels = [(left, x[:, :width], f"vectors in [{len(names)}, {x.shape[1]}]")]
    for row, (name, (head, result)) in enumerate(rows.items()):
        weight = projections[:, head * width : (head + 1) * width]
        middle, right = figure.add_subplot(grid[row, 1]), figure.add_subplot(grid[row, 2])
        panels.append((middle, weight[:width], f"{name} projection [{x.shape[1]}, {width}]"))
        panels.append((right, result, f"{'queries' if name == 'query' else name + 's'} [{len(names)}, {width}]"))
    for axes, values, title in panels:
        limit = float(np.quantile(np.abs(values), 0.98))
        heat(axes, values, vmin=-limit, vmax=limit)
        axes.set_title(title, fontsize=8)
        axes.set(xticks=[], yticks=[])
        if len(values) == len(names):  # the bottom row is the current position
            frame = {"fill": False, "edgecolor": "black", "linewidth": 2, "clip_on": False}
            axes.add_patch(plt.Rectangle((-0.5, len(names) - 1.5), width, 1, **frame))
    left.set_yticks(range(len(names)), names)
    left.set_xlabel(f"the first {width} dimensions", fontsize=8)
    middle.set_xlabel(f"the first {width} rows of {x.shape[1]}", fontsize=8)
    right.set_xlabel(f"{width} dimensions of the head", fontsize=8)
    return figure


def scores() -> Figure:
    """Figure 3-20."""
    names = words(trace(DOG).tokens)
    q, k = inside("q_rotated")[HEAD : HEAD + 1, -1:], inside("k_rotated")[KV_HEAD : KV_HEAD + 1]
    raw = relevance_scores(q, k)
    share = attention_weights(raw)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.6))
    for axes, values, title, hatch in (
        (left, raw[0, 0], "query of 'it' · key / √64", ""),
        (right, share[0, 0], f"after the softmax: they sum to {share.sum():.2f}", "//"),
    ):
        bars = axes.barh(range(len(names)), values, color=LIGHT if hatch else MIDDLE, hatch=hatch, edgecolor="black")
        axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        axes.margins(x=0.18)
        axes.set_title(title)
    left.set_xlabel("relevance score")
    right.set_xlabel("attention weight")
    return figure


def combining() -> Figure:
    """Figure 3-21."""
    names = words(trace(DOG).tokens)
    share, v = inside("weights")[HEAD, -1], inside("v")[KV_HEAD]
    figure, grid = plt.subplots(2, 2, figsize=(WIDTH, 3.4), height_ratios=[len(names), 1.2], sharex=True)
    limit = float(np.quantile(np.abs(v), 0.98))
    for axes, values, title in (
        (grid[0, 0], v, "values"),
        (grid[0, 1], share[:, None] * v, "values · weight"),
        (grid[1, 1], (share @ v)[None], "their sum: the vector out"),
    ):
        image = heat(axes, values, vmin=-limit, vmax=limit)
        axes.set_title(title)
        axes.set_yticks([])
    grid[0, 0].set_yticks(range(len(names)), names)
    grid[0, 1].set_yticks(range(len(names)), [f"× {x:.2f}" for x in share])
    grid[1, 0].axis("off")
    grid[1, 1].set_xlabel("64 dimensions of the head")
    figure.colorbar(image, ax=grid, label="value", extend="both")
    return figure


def masks() -> Figure:
    """Figures 3-22 and 3-23."""
    t = np.arange(16)
    panels = {
        "causal": causal(t, t),
        "sliding window, 4": sliding_window(t, t, 4),
        "strided, 4": strided(t, t, 4),
        "fixed, 4": fixed(t, t, 4),
        "block-local": block_local(t, t, block=2, local_blocks=2, stride=3),
        "bidirectional": bidirectional(t, t),
    }
    figure, grid = plt.subplots(2, 3, figsize=(WIDTH, 5.1), sharex=True, sharey=True)
    for axes, (title, visible) in zip(grid.flat, panels.items(), strict=True):
        axes.imshow(visible + np.eye(len(t)), cmap=THREE, vmin=0, vmax=2)
        cells(axes, *visible.shape)
        axes.set_title(f"{title}: {visible.sum()} pairs", fontsize=8)
        axes.set(xticks=[0, 5, 10, 15], yticks=[0, 5, 10, 15])
    figure.supxlabel("key: position looked at", fontsize=9)
    figure.supylabel("query: position that looks", fontsize=9)
    return figure


def mask_row() -> Figure:
    """Figure 3-24."""
    names, row = words(trace(DOG).tokens), 5
    t = np.arange(len(names))
    figure, axes = canvas(1.7, 11.2, 3.1)
    for y, (title, visible) in enumerate({"full": causal(t, t), "local, 3 tokens": sliding_window(t, t, 3)}.items()):
        axes.text(0, y + 0.5, title, va="center", fontweight="bold")
        for x, (name, sees) in enumerate(zip(names, visible[row], strict=True)):
            fill = OWN if x == row else LIGHT if sees else "white"
            axes.add_patch(plt.Rectangle((2.4 + 1.25 * x, y + 0.05), 1.15, 0.85, facecolor=fill, edgecolor="black"))
            color = "aliceblue" if x == row else "black" if sees else MIDDLE  # aliceblue is the same on dark paper
            axes.text(2.975 + 1.25 * x, y + 0.48, name, ha="center", va="center", color=color)
    meanings = ((2.4, OWN, "the token that looks"), (5.6, LIGHT, "it may look here"), (8.3, "white", "hidden"))
    for x, fill, label in meanings:
        axes.add_patch(plt.Rectangle((x, 2.4), 0.4, 0.4, facecolor=fill, edgecolor="black"))
        axes.text(x + 0.5, 2.6, label, va="center")
    return figure


def shared_heads() -> Figure:
    """Figures 3-25 to 3-28."""
    config, figure = model().config, plt.figure(figsize=(WIDTH, 3.2))
    panels, heads = figure.subplots(1, 3), config.num_attention_heads
    kinds = {"multi-head": heads, "grouped-query": config.num_key_value_heads, "multi-query": 1}
    for axes, (title, kv_heads) in zip(panels, kinds.items(), strict=True):
        axes.set(xlim=(-0.7, heads - 0.3), ylim=(4.2, -0.9))
        axes.axis("off")
        group = heads // kv_heads
        for head in range(heads):
            x = head // group * group + (group - 1) / 2
            axes.plot([head, x], [0, 2.5], color="black", linewidth=0.9, zorder=1)
            axes.plot(head, 0, "o", color=LIGHT, markeredgecolor="black", markersize=13, clip_on=False)
            axes.plot(x, 2.5, "s", color=DARK, markersize=13, clip_on=False)
            axes.text(head, 0, str(head), ha="center", va="center", fontsize=8)
        per_token = kv_cache_bytes(replace(config, num_key_value_heads=kv_heads), 1)
        axes.set_title(f"{title}\nN = {heads}, K = {kv_heads}", fontsize=9)
        axes.text((heads - 1) / 2, 3.7, f"{per_token:,} bytes per token", ha="center", va="center")
    panels[0].text(-0.4, -0.75, "query heads", va="center", fontsize=8)
    panels[0].text(-0.4, 3.2, "key/value heads", va="center", fontsize=8)
    return figure


def flash() -> Figure:
    """For the section on FlashAttention, which has no figure in the chapter."""
    config, lengths = model().config, [2**n for n in range(6, 14)]
    t = {length: np.arange(length) for length in lengths}
    lines = {
        "naive": ("o-", DARK, lambda n: slow_memory_bytes(config, n, n, None)),
        "flash": ("s--", MIDDLE, lambda n: slow_memory_bytes(config, n, n, TILE)),
        "flash, causal": ("^:", "black", lambda n: slow_memory_bytes(config, n, n, TILE, causal(t[n], t[n]))),
    }
    figure, axes = plt.subplots(figsize=(WIDTH, 2.9))
    for label, (style, color, count) in lines.items():
        moved = [count(length) / 2**20 for length in lengths]
        axes.plot(lengths, moved, style, color=color, markersize=5, label=label)
        axes.annotate(f"{moved[-1]:,.0f} MiB", (lengths[-1], moved[-1]), (6, -3), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="tokens in the prompt", ylabel="moved by one layer, MiB")
    axes.set_xticks(lengths, lengths)
    axes.minorticks_off()
    axes.margins(x=0.04)
    axes.set_xlim(right=2 * lengths[-1])
    axes.legend(frameon=False)
    return figure


def blocks() -> Figure:
    """Figures 3-29 and 3-30."""
    config, random = model().config, np.random.default_rng(0)
    width, wide = config.hidden_size, config.intermediate_size

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (0.02 * random.standard_normal((rows, columns))).astype(np.float32)

    norm = np.ones(width, np.float32), np.zeros(width, np.float32)
    attention, network = (matrix(3 * width, width), matrix(width, width)), (matrix(wide, width), matrix(width, wide))
    original = replace(config, num_key_value_heads=config.num_attention_heads, layer_norm_epsilon=1e-5)
    t, old, new = np.arange(len(trace(DOG).ids)), {}, trace(DOG).seen
    old["in"] = new["embedding"] + sinusoidal_positions(t, width)
    weights = GPT2BlockWeights(*norm, *attention, *norm, *network)
    original_block(old["in"], weights, original, causal(t, t), tap=npllm.record(old))
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4.4))
    stages = [
        ("vectors in", 0, "in"),
        ("attention", 1, "attention.output"),
        ("+", 0, "residual_after_attention"),
        ("LayerNorm", 0, "post_attention_layernorm"),
        ("ReLU network", 1, "feedforward.output"),
        ("+", 0, "residual_after_feedforward"),
        ("LayerNorm", 0, "post_feedforward_layernorm"),
    ]
    flow(left, "original, with random weights", [(name, side, old[value]) for name, side, value in stages])
    stages = [
        ("vectors in", 0, f"{LAYER - 1}.residual_after_feedforward"),
        ("RMSNorm", 1, f"{LAYER}.input_layernorm"),
        ("attention, RoPE", 1, f"{LAYER}.attention.output"),
        ("+", 0, f"{LAYER}.residual_after_attention"),
        ("RMSNorm", 1, f"{LAYER}.post_attention_layernorm"),
        ("SwiGLU network", 1, f"{LAYER}.feedforward.output"),
        ("+", 0, f"{LAYER}.residual_after_feedforward"),
    ]
    title = f"modern: layer {LAYER} of the default model"
    flow(right, title, [(name, side, new[f"layers.{value}"]) for name, side, value in stages])
    return figure


def flow(axes: Axes, title: str, stages: list[tuple[str, int, np.ndarray]]) -> None:
    """Draw a block from top to bottom: the residual stream on the left, its branches on the right."""
    axes.set(xlim=(0, 10), ylim=(len(stages) - 0.4, -0.8), title=title)
    axes.axis("off")
    axes.text(9.8, -0.65, "rms", ha="right", va="center", fontsize=8)
    main, branched = 0, False  # the last row of the residual stream; whether the stage above is a branch
    for row, (_, side, value) in enumerate(stages):
        if side and branched:
            arrow(axes, (5.2, row - 1), (5.2, row), shrinkA=11, shrinkB=11)
        elif side:  # out of the stream: right, then down
            turn = "angle,angleA=0,angleB=90,rad=0"
            arrow(axes, (1.6, row - 0.55), (5.2, row), shrinkB=9, connectionstyle=turn)
        elif row:
            arrow(axes, (1.6, main), (1.6, row), shrinkB=11)
            if branched:  # back into it: down, then left
                turn = "angle,angleA=90,angleB=0,rad=0"
                arrow(axes, (5.2, row - 1), (1.6, row), shrinkB=12, connectionstyle=turn)
        main, branched = (main if side else row), bool(side)
        axes.text(9.8, row, f"{np.sqrt(np.mean(value[-1] ** 2)):.2f}", ha="right", va="center")
    for row, (name, side, _) in enumerate(stages):
        box(axes, 5.2 if side else 1.6, row, name, LIGHT if side else PALE)


def packing() -> Figure:
    """Figure 3-31."""
    lm, capacity = model(), 16
    ids = [lm.tokenizer.encode(text) for text in DOCUMENTS]
    rows = first_fit([len(document) for document in ids], capacity)
    packed = pack(ids, capacity)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(WIDTH, 2.9), width_ratios=[1.15, 1.15, 1])
    alone = sum(map(len, ids)) / (len(ids) * capacity)
    layouts = (
        (left, [[n] for n in range(len(ids))], f"one in each row: {alone:.0%} used"),
        (middle, rows, f"packed: {packed.utilisation:.0%} used"),
    )
    for axes, layout, title in layouts:
        for y, row in enumerate(layout):
            x = 0
            axes.add_patch(plt.Rectangle((0, y - 0.4), capacity, 0.8, facecolor="white", edgecolor=MIDDLE))
            for n in row:
                fill = (LIGHT, PALE, MIDDLE, DARK)[n % 4]
                axes.add_patch(plt.Rectangle((x, y - 0.4), len(ids[n]), 0.8, facecolor=fill, edgecolor="black"))
                color = "white" if fill in (DARK, MIDDLE) else "black"
                axes.text(x + len(ids[n]) / 2, y, str(n), ha="center", va="center", color=color)
                x += len(ids[n])
        axes.set(xlim=(0, capacity), ylim=(len(ids) - 0.4, -0.6), xlabel="token", yticks=range(len(layout)))
        axes.set_title(title, fontsize=8)
    left.set_ylabel("row of the batch")
    t, documents = np.arange(capacity), packed.documents[0]
    visible = causal(t, t) & same_document(documents, documents)
    right.imshow(visible + (visible & np.eye(capacity, dtype=bool)), cmap=THREE, vmin=0, vmax=2)
    cells(right, capacity, capacity)
    right.set(xticks=[0, 5, 10, 15], yticks=[0, 5, 10, 15], xlabel="key", ylabel="query")
    right.set_title("mask of row 0", fontsize=8)
    return figure


def sinusoids() -> Figure:
    """For the absolute positions in the section on positional embeddings, which have no figure in the chapter."""
    width, count = 128, 64
    figure, axes = plt.subplots(figsize=(WIDTH, 2.8))
    image = heat(axes, sinusoidal_positions(np.arange(count), width), vmin=-1, vmax=1)
    axes.set(xlabel=f"{width} dimensions", ylabel="position")
    figure.colorbar(image, label="value added")
    return figure


def rotation() -> Figure:
    """Figure 3-32."""
    lm, query, count = model(), inside("q")[HEAD, -1], 7
    pairs = len(query) // 2
    cos, sin = rope_tables(np.arange(count), lm.config, count)
    turned = apply_rope(np.repeat(query[None, None], count, axis=1), cos, sin)[0]  # [T, H]: the query at each position
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH, 2.7))
    for axes, pair in zip(panels, (1, 6, pairs - 1), strict=True):
        x, y = turned[:, pair], turned[:, pair + pairs]
        radius = float(np.hypot(x[0], y[0]))
        axes.add_patch(plt.Circle((0, 0), radius, fill=False, color=MIDDLE, linestyle=":"))
        for position in range(count):
            style = {"color": DARK if position == 0 else MIDDLE, "linewidth": 1.8 if position == 0 else 0.8}
            arrow(axes, (0, 0), (x[position], y[position]), shrinkB=0, **style)
        shown = range(count) if pair < pairs - 1 else [0]  # the last pair barely turns
        for position in shown:
            label = str(position) if pair < pairs - 1 else f"0 to {count - 1}"
            place = (1.17 * x[position], 1.17 * y[position])
            axes.text(*place, label, ha="center", va="center", fontsize=8)
        limit = 1.45 * radius
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axes.set(xlabel=f"dimension {pair}", ylabel=f"dimension {pair + pairs}")
        degrees = float(np.degrees(np.arctan2(sin[1, pair], cos[1, pair])))
        axes.set_title(f"pair {pair}: {degrees:.2g}° per token", fontsize=8)
        axes.locator_params(nbins=4)
    return figure


def rope_scores() -> Figure:
    """Figure 3-33."""
    lm, names = model(), words(trace(DOG).tokens)
    query, key = inside("q")[HEAD, -1:][None], inside("k")[KV_HEAD, 4:5][None]  # 'it' and 'squirrel'
    figure = plt.figure(figsize=(WIDTH, 4.2))
    grid = figure.add_gridspec(2, 2, height_ratios=[1, 1.2])
    limit = float(np.quantile(np.abs(inside("q")[HEAD]), 0.98))
    for column, (name, title) in enumerate((("q", "queries"), ("q_rotated", "queries, rotated by position"))):
        axes = figure.add_subplot(grid[0, column])
        heat(axes, inside(name)[HEAD], vmin=-limit, vmax=limit)
        axes.set(title=title, xlabel="64 dimensions of the head")
        axes.set_yticks(range(len(names)), [f"{name}  {position}" for position, name in enumerate(names)], fontsize=8)
    axes = figure.add_subplot(grid[1, :])
    distances = np.arange(64)
    for end, style, color in ((63, "o", LIGHT), (4000, "-", DARK)):
        at = np.array([end])
        q = apply_rope(query, *rope_tables(at, lm.config, end + 1))
        k = apply_rope(np.repeat(key, 64, axis=1), *rope_tables(end - distances, lm.config, end + 1))
        label = f"query at position {end:,}"
        edge = {"markeredgecolor": "black", "markeredgewidth": 0.5} if style == "o" else {}
        axes.plot(distances, relevance_scores(q, k)[0, 0], style, color=color, markersize=6, label=label, **edge)
    axes.set(xlabel="how many tokens the key lies before the query", ylabel="score of 'it' for 'squirrel'")
    axes.legend(frameon=False)
    return figure


def performance() -> Figure:
    """Tokens per second of all sides, from docs/performance.json."""
    parts = json.loads((FOLDER.parent / "performance.json").read_text(encoding="utf-8"))["parts"]
    styles = {"npllm": (DARK, ""), "transformers": (MIDDLE, "//"), "llama.cpp": (LIGHT, "..")}
    titles = {"decode": "Phi-3-mini's shapes, 4 layers", "default_decode": "the default model"}
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 2.9))
    for axes, (part, title) in zip(panels, titles.items(), strict=True):
        sides = parts.get(part, {}).get("sides", {})
        for place, (side, row) in enumerate(sides.items()):
            rates = 1 / np.array(row["seconds"])
            middle = 1 / np.median(row["seconds"])
            color, hatch = styles[side.partition(" ")[0]]
            reach = [[middle - rates.min()], [rates.max() - middle]]
            axes.barh(place, middle, color=color, hatch=hatch, edgecolor="black", linewidth=0.6)
            axes.errorbar(middle, place, xerr=reach, color="black", ecolor="black", linewidth=0.8, capsize=2)
        axes.set_yticks(range(len(sides)), sides)
        axes.invert_yaxis()
        axes.set(title=title, xlabel="tokens per second")
    return figure


DRAWN = [value for value in list(globals().values()) if getattr(value, "__annotations__", {}).get("return") is Figure]


def draw(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    plt.close(figure)
    return file.getvalue()


def on_dark(drawn: bytes) -> bytes:
    """The same drawing for dark paper. Pictures inside it, such as heatmaps, stay as they are."""

    def recolored(found: re.Match[bytes]) -> bytes:
        color = found[0].decode()
        red, green, blue = bytes.fromhex(color[1:])
        if max(red, green, blue) - min(red, green, blue) < 10:
            color = "#" + 3 * f"{round(0xE6 - 0.82 * green):02x}"
        return ON_DARK.get(color, color).encode()

    # Black is what SVG draws with where no color is named.
    drawn = drawn.replace(b"<svg ", b'<svg fill="#000000" ', 1)
    return re.sub(rb"#[0-9a-f]{6}\b", recolored, drawn)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a file in DIR differs")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    different = []
    with plt.rc_context(STYLE):
        for function in DRAWN:
            light = draw(function())
            for path, drawn in ((f"{function.__name__}.svg", light), (f"{function.__name__}.dark.svg", on_dark(light))):
                if not args.check:
                    (args.folder / path).write_bytes(drawn)
                elif not (args.folder / path).exists() or (args.folder / path).read_bytes() != drawn:
                    different.append(path)
    print(f"{args.folder}: {len(DRAWN)} figures{'; different: ' + ', '.join(different) if different else ''}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
