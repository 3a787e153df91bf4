"""Where to look: heads ranked by what they look at, and the parts of a logit, as data and as lines.

Source: as in heads.py and attribution.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..lm import LM
from .attribution import Attribution, ranked_parts
from .heads import KINDS, HeadScores, labels, ranked
from .patching import patching_rows
from .tables import FAINT, NO_BREAK, Line, percent, table, wrapped
from .tokens import token_labels

BEST = 8  # heads of each kind, as text
PARTS = 12  # of a logit
LEAST = 0.05  # of the largest part: what is smaller is a dot in the grid


def head_data(scores: HeadScores) -> dict[str, Any]:
    """The scores and labels of all heads, and what they mean."""
    return {
        "kinds": {name: kind._asdict() for name, kind in KINDS.items()},
        "scores": {name: values.tolist() for name, values in scores._asdict().items()},
        "labels": labels(scores),
    }


def head_lines(data: dict[str, Any], width: int, shades: str) -> list[Line]:
    """The best heads of each kind, and a letter for each head."""
    scores = HeadScores(**{name: np.asarray(rows, dtype=float) for name, rows in data["scores"].items()})
    lines: list[Line] = []
    for name, kind in KINDS.items():
        best = [
            f"{layer}.{head} ({percent(score)})".replace(" ", NO_BREAK)
            for layer, head, score in ranked(scores, name, BEST)
        ]
        count = sum(row.count(kind.label) for row in data["labels"])
        lines += wrapped(
            f"{kind.label} ({count} head{'s' * (count != 1)}, from {percent(kind.threshold)}): {kind.definition}", width
        )
        lines += wrapped(
            "  ".join(one.replace(" ", NO_BREAK) for one in best)
            or ("none: it cannot be measured here" if name == "induction" else "none: the text is too short"),
            width,
            FAINT,
            indent=4,
        )
    heads = len(data["labels"][0])
    letters = {kind.label: kind.label[0].upper() for kind in KINDS.values()} | {"": shades[0]}
    if 8 + 2 * heads > width:
        return lines
    rows = [" ".join(f"{letters[one]}" for one in row) for row in data["labels"]]
    lines.append([("  layer " + " ".join(str(head % 10) for head in range(heads)), FAINT)])
    lines += [[(f"  {layer:5} {row}", "")] for layer, row in enumerate(rows)]
    return [
        *lines,
        *wrapped(", ".join(f"{letters[kind.label]}: {kind.label}" for kind in KINDS.values()), width, FAINT),
    ]


def attribution_data(lm: LM, found: Attribution) -> dict[str, Any]:
    """An attribution as plain data."""
    arrays = {name: getattr(found, name).tolist() for name in ("heads", "attention_bias", "feedforward")}
    tokens = {"token": found.token, "against": found.against}
    names = {f"{name}_text": None if one is None else token_labels(lm, [one])[0] for name, one in tokens.items()}
    sums = {"logit": found.logit, "total": found.total, "capped": found.capped}
    return {**tokens, **names, **sums, **arrays, "others": dict(found.others)}


def attribution_lines(data: dict[str, Any], width: int, shades: str) -> list[Line]:
    """The largest parts, the sum of the others, and a cell for each head."""
    heads, bias, network = (np.asarray(data[name]) for name in ("heads", "attention_bias", "feedforward"))
    sums = (data["token"], data["against"], 0, data["logit"], data["capped"])
    found = Attribution(*sums, heads, bias, network, data["others"])
    parts = ranked_parts(found)
    largest = max(abs(parts[0][1]), 1e-30)
    what = f"'{data['token_text']}'" + (f" minus '{data['against_text']}'" if data["against"] is not None else "")
    lines = wrapped(
        f"{what}: {data['logit']:.2f}{', before the cap on the logits' * data['capped']}. The parts sum to it. What a"
        " part changes in later layers is counted there.",
        width,
    )
    room = min(30, max(0, width - 40))

    def row(name: str, value: float) -> list[str]:
        return [name, f"{value:+.2f}", (shades[-1] if value > 0 else shades[1]) * round(room * abs(value) / largest)]

    rows = [row(name, value) for name, value in parts[:PARTS]]
    rest = sum(value for _, value in parts[PARTS:])
    rows += [["total", f"{data['total']:+.2f}", ""]]
    if len(parts) > PARTS:
        rows.insert(-1, [f"{len(parts) - PARTS} others", f"{rest:+.2f}", ""])
    lines += table(["part", "logit", ""], rows, "lrl", width)
    return [*lines, *grid(found, width, shades)]


def patching_data(lm: LM, ids: Sequence[int], other_ids: Sequence[int], token: int, against: int) -> dict[str, Any]:
    """How much of the difference of two logits each residual vector of the first text restores in the second."""
    found = patching_rows(lm, ids, other_ids, token, against=against)
    return {
        "token": token,
        "against": against,
        "texts": token_labels(lm, [token, against]),
        "clean": found.clean,
        "other": found.other,
        "tokens": [token_labels(lm, pair) for pair in zip(ids, other_ids, strict=True)],
        "rows": [row.tolist() for row in found.rows],
    }


def patching_lines(data: dict[str, Any], width: int, shades: str) -> list[Line]:
    """A row for each layer, a cell for each position; only the positions from the first difference, or the last."""
    answer, other = data["texts"]
    lines = wrapped(
        f"The residual stream of this prompt, put into the run of the other one. '{answer}' minus '{other}':"
        f" {data['clean']:.2f} here, {data['other']:.2f} there. {shades[-1]}: as here, {shades[0]}: as there.",
        width,
    )
    changed = [i for i, (one, another) in enumerate(data["tokens"]) if one != another]
    pairs = (f"{i} '{data['tokens'][i][0]}', there '{data['tokens'][i][1]}'" for i in changed)
    lines += wrapped("; ".join(pairs), width, FAINT)
    last = len(data["tokens"])
    shown = range(max(changed[0], last - (width - 8) // 3), last)
    lines.append([("  layer " + "".join(f"{i % 100:>3}" for i in shown), FAINT)])

    def cell(share: float) -> str:
        step = shades[0] if share < LEAST else shades[min(1 + int(share * (len(shades) - 1)), len(shades) - 1)]
        return f" {'-' if share <= -LEAST else ' '}{step}"

    rows = enumerate(data["rows"])
    return [*lines, *([(f"  {layer:5} " + "".join(cell(row[i]) for i in shown), "")] for layer, row in rows)]


def grid(found: Attribution, width: int, shades: str) -> list[Line]:
    """A cell for each head and each network: its size as a shade, with a minus sign if it lowers the logit.

    The heads are compared with the largest head, the networks with the largest network.
    """
    layers, heads = found.heads.shape
    if 8 + 2 * heads + 9 > width:
        return []
    most, most_of_networks = (max(float(np.abs(values).max()), 1e-30) for values in (found.heads, found.feedforward))
    lines: list[Line] = [[("  layer " + "".join(f"{head % 10:>2}" for head in range(heads)) + "  network", FAINT)]]

    def cell(value: float, largest: float) -> str:
        size = abs(value) / largest
        shade = shades[0] if size < LEAST else shades[min(1 + int(size * (len(shades) - 1)), len(shades) - 1)]
        return ("-" if value < 0 and size >= LEAST else " ") + shade

    for layer in range(layers):
        cells = "".join(cell(value, most) for value in found.heads[layer])
        lines.append([(f"  {layer:5} {cells}  {cell(found.feedforward[layer], most_of_networks)}", "")])
    legend = f"{shades[-1]}: up to {most:.2f} of a head, {most_of_networks:.2f} of a network"
    return [*lines, *wrapped(legend, width, FAINT)]
