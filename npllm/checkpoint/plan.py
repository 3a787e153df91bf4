"""The plan of a checkpoint: which of its tensors make up which weight, and in which rows.

Some files store the query, key and value projections separately, and gate and up; in others they are fused. Here they
are fused, stacked along the rows: each separate tensor fills its rows.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config import Config
from ..errors import ModelFileError
from ..families.experts import ExpertsConfig
from ..families.family import Family
from ..storage.blocks import BlockFormat
from ..storage.stored import FORMATS, Stored, one_of, read_rows


class Part(NamedTuple):
    """A tensor of a file, and the rows of a weight that it fills."""

    name: str
    shape: tuple[int, ...]
    first: int = 0  # its first row in the weight
    interleaved_heads: int = 0  # the number of heads, from its first row on, with neighbours as RoPE pairs
    head_dim: int = 0  # alternating rows of gate and up are like one head of all rows
    transposed: bool = False  # it is stored as [in, out], and is the whole weight


def plan(
    config: Config,
    family: Family,
    tensors: Mapping[str, Stored],
    names: Mapping[str, str],
    biased: Collection[str],
    where: Path,
    interleaved: Collection[str] = (),
    transposed: Collection[str] = (),
) -> dict[str, list[Part]]:
    """The parts of each weight: {"embed_tokens": [Part], "layers.0.qkv_proj": [Part, Part, Part], ...}.

    An expert's weight is called "layers.0.experts.5.down_proj".

    Parameters
    ----------
    tensors : those of the files; a tensor of all experts must be cut, see `cut_experts`
    names : our name of a weight -> its names in the files: the parts in row order, alternatives separated by bars; * is
        the layer's index, and # the expert's
    biased : the weights that have a bias
    where : the file or folder, for messages
    interleaved : weights with q and k rows in which RoPE's pairs are neighbours
    transposed : weights that are stored as [in, out]

    Raises
    ------
    ModelFileError : tensors are missing or unknown, or have a shape that differs from the config's or an unsupported
        dtype; the first five are named
    """
    plans: dict[str, list[Part]] = {}
    shapes = family.shapes(config)
    spelling = {ours: spelling_of(names[ours], tensors) for ours in shapes}
    in_blocks = [ours for ours in shapes if "*" in spelling[ours][0]]
    places = [(ours, ours, 0, 0) for ours in shapes if ours not in in_blocks]
    places += [
        (f"layers.{i}.{ours.replace('experts.', f'experts.{expert}.')}", ours, i, expert)
        for i in range(config.num_hidden_layers)
        for ours in in_blocks
        for expert in range(expert_count(config) if ours.startswith("experts.") else 1)
    ]
    for place, ours, layer, expert in places:
        rows, columns = shapes[ours]
        files = [name.replace("*", str(layer)).replace("#", str(expert)) for name in spelling[ours]]
        turned = turned_heads(config, len(files)) if ours in interleaved else [0] * len(rows)
        width = config.head_dim
        if ours in family.alternating and len(files) == 1:
            turned, width = [1], sum(rows)
        rows = rows if len(files) > 1 else [sum(rows)]
        matrices = [(count,) if columns is None else (count, columns) for count in rows]
        plans[place] = stacked(files, "weight", matrices, turned, width)
        if ours in transposed:
            plans[place] = [in_by_out(part, tensors) for part in plans[place]]
        if ours in biased:
            plans[f"{place}_bias"] = stacked(files, "bias", [(count,) for count in rows], turned, width)
    if config.tie_word_embeddings and "lm_head" in plans and is_copy(plans, tensors):
        head = plans.pop("lm_head")[0].name
        tensors = {name: stored for name, stored in tensors.items() if name != head}
    tensors = {name: stored for name, stored in tensors.items() if not name.startswith(tuple(family.not_read))}
    check(plans, tensors, [*family.not_needed, *later_layers(config, tensors, names)], where)
    return plans


def expert_count(config: Config) -> int:
    """The number of experts in each block; 0 in a family without."""
    return config.num_experts if isinstance(config, ExpertsConfig) else 0


def cut_experts(config: Config, tensors: Mapping[str, Stored], names: Mapping[str, str]) -> dict[str, Stored]:
    """The tensors of a file, with each expert's part of a tensor [E, F, D] as a tensor of its own. Nothing is read.

    Its name is that in `names` without "#.": "blk.3.ffn_up_exps.weight" becomes "blk.3.ffn_up_exps.0.weight" and so on
    if a name is "blk.*.ffn_up_exps.#".
    """
    experts, cut = expert_count(config), dict(tensors)
    patterns = [
        re.compile(re.escape(name).replace(r"\*", r"(\d{1,9})").replace(r"\.\#", "()") + r"\.(weight|bias)")
        for name in sorted({name for spellings in names.values() for name in spellings.split() if "#" in name})
    ]
    matches = [match for name in tensors for pattern in patterns if (match := pattern.fullmatch(name))]
    for match in matches:
        name, stored, axes = match[0], tensors[match[0]], {"weight": 3, "bias": 2}[match[3]]
        if stored.shape[:1] != (experts,) or len(stored.shape) != axes or config.num_hidden_layers <= int(match[1]):
            continue  # `plan` refuses it, or does not need it
        before, after = name[: match.start(2)], name[match.start(2) :]
        cut |= {f"{before}.{expert}{after}": one_of(stored, expert) for expert in range(experts)}
        del cut[name]
    return cut


def stacked(
    files: Sequence[str], kind: str, shapes: Sequence[tuple[int, ...]], turned: Sequence[int], head_dim: int
) -> list[Part]:
    """The tensors of one weight, stacked along the rows."""
    firsts = np.cumsum([0, *(shape[0] for shape in shapes)]).tolist()
    return [
        Part(tensor(name, kind), shape, first, heads, head_dim)
        for name, shape, first, heads in zip(files, shapes, firsts, turned, strict=False)
    ]


def tensor(name: str, kind: str = "weight") -> str:
    """The name of a tensor; a name that ends with its kind is whole, such as that of a bias without a matrix."""
    return name if name.endswith((".weight", ".bias")) else f"{name}.{kind}"


def turned_heads(config: Config, files: int) -> list[int]:
    """The number of heads in each tensor with neighbours as RoPE pairs; values have no pairs."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return [heads, kv_heads, 0] if files == 3 else [heads + kv_heads]


def in_by_out(part: Part, tensors: Mapping[str, Stored]) -> Part:
    """The part as [in, out]; unchanged in a block format, whose blocks are parts of rows (of [out, in])."""
    quantized = part.name in tensors and isinstance(FORMATS.get(tensors[part.name].dtype), BlockFormat)
    return part if quantized else part._replace(shape=part.shape[::-1], transposed=True)


def spelling_of(spellings: str, tensors: Mapping[str, Stored]) -> list[str]:
    """The names of a weight's parts, separate or fused: whichever the first layer (and expert) has (most of)."""
    candidates = [spelling.split() for spelling in spellings.split(" | ")]
    return max(candidates, key=lambda names: parts_found(names, tensors))


def parts_found(names: list[str], tensors: Mapping[str, Stored]) -> tuple[bool, int]:
    """Whether the first layer has all parts of these names, and how many it has."""
    count = sum(tensor(name.replace("*", "0").replace("#", "0")) in tensors for name in names)
    return count == len(names), count


def biases_found(names: Mapping[str, str], tensors: Mapping[str, Stored]) -> set[str]:
    """The weights with a bias in a .gguf file; the metadata do not say."""
    return {ours for ours, theirs in names.items() if any(f"{name}.bias" in tensors for name in first_layer(theirs))}


def first_layer(spellings: str) -> list[str]:
    """All names of a weight in the first layer, and of its first expert."""
    return [name for name in spellings.replace("*", "0").replace("#", "0").split() if name != "|"]


def later_layers(config: Config, tensors: Mapping[str, Stored], names: Mapping[str, str]) -> list[str]:
    """The tensors of blocks beyond `num_hidden_layers`: a config may use fewer blocks than the file has."""
    patterns = [
        re.compile(
            re.escape(name).replace(r"\*", r"(\d{1,9})").replace(r"\.\#", r"(?:\.\d{1,9})?") + r"\.(weight|bias)"
        )
        for spellings in names.values()
        for name in spellings.split()
        if "*" in name
    ]
    matches = ((name, pattern.fullmatch(name)) for name in tensors for pattern in patterns)
    return [name for name, match in matches if match and int(match[1]) >= config.num_hidden_layers]


def is_copy(plans: Mapping[str, Sequence[Part]], tensors: Mapping[str, Stored]) -> bool:
    """Whether the LM head of a tied model is missing from its files, or equal to the embeddings.

    A different head is used, in spite of the config, as in transformers.
    """
    head = tensors.get(plans["lm_head"][0].name)
    embeddings = tensors.get(plans["embed_tokens"][0].name)
    if head is None or embeddings is None:
        return True
    if head.shape != embeddings.shape or any(stored.dtype not in FORMATS for stored in (head, embeddings)):
        return False
    return all(
        np.array_equal(ours, theirs) for ours, theirs in zip(read_rows(head), read_rows(embeddings), strict=True)
    )


def halves_order(interleaved_heads: int, head_dim: int, rows: int) -> np.ndarray:
    """The new places of a projection's rows, so that dimensions i and i + H / 2, not neighbours, are a pair of a head.

    The first heads may be interleaved; the rest (the values of a fused projection) are already in order.

    >>> halves_order(1, 6, 8)
    array([0, 3, 1, 4, 2, 5, 6, 7])
    """
    order = np.arange(rows)
    turned = order[: interleaved_heads * head_dim].reshape(interleaved_heads, 2, head_dim // 2)
    return np.concatenate([turned.swapaxes(1, 2).reshape(-1), order[turned.size :]])


def check(
    plans: Mapping[str, Sequence[Part]], tensors: Mapping[str, Stored], not_needed: Collection[str], where: Path
) -> None:
    """Refuse files whose tensors are not exactly those of the plan; suffixes in `not_needed` are ignored."""
    needed = {part.name: part.shape for parts in plans.values() for part in parts}
    wrong = {
        "missing tensors": [name for name in needed if name not in tensors],
        "unknown tensors": [name for name in tensors if name not in needed and not name.endswith(tuple(not_needed))],
    }
    for fault, names in wrong.items():
        if names:
            raise ModelFileError(
                f"{where}: {len(names)} {fault}: {first_five(names)}; check that the config belongs to these weights"
            )
    shapes = [
        f"{name} expected {list(shape)}, got {list(tensors[name].shape)}"
        for name, shape in needed.items()
        if tensors[name].shape != shape
    ]
    if shapes:
        raise ModelFileError(
            f"{where}: {len(shapes)} tensors with a shape that differs from the config's: {first_five(shapes)};"
            " check that the config belongs to these weights"
        )
    dtypes = [f"{name} {tensors[name].dtype}" for name in needed if tensors[name].dtype not in FORMATS]
    if dtypes:
        raise ModelFileError(
            f"{where}: {len(dtypes)} tensors with a dtype that npllm does not read: {first_five(dtypes)};"
            f" expected one of {', '.join(FORMATS)}"
        )


def first_five(items: Sequence[str]) -> str:
    """The first five items, as text: enough to see what is wrong."""
    return ", ".join(items[:5]) + (", ..." if len(items) > 5 else "")
