"""How much memory is available, and refusing what does not fit before it is allocated.

Linux grants memory that it does not have, and later kills the process that uses it. So the sizes are added up and
compared first.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..cache import CACHE_DTYPES, kv_cache_bytes
from ..config import Config
from ..errors import NotEnoughMemoryError
from ..families import family_of
from ..flash import TILE
from .address_space import address_space_bytes
from .units import format_bytes

if sys.platform != "win32":
    import resource

REMEDY = "free memory, or take a smaller model, fewer tokens, or --dtype int8 or int4"


def check_memory(parts: Mapping[str, int], available: int | None = None, remedy: str = REMEDY) -> None:
    """Raise NotEnoughMemoryError, with the arithmetic, if the parts together exceed the available memory.

    parts : what is to be allocated: bytes by name
    available : in bytes; by default `available_bytes()`. If that is unknown, nothing is refused
    remedy : what to do, for the message

    >>> check_memory({"weights": 15_300_000_000, "KV cache": 500_000_000}, 7_900_000_000)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    npllm.errors.NotEnoughMemoryError: 15.3 GB weights + 500 MB KV cache = 15.8 GB, available 7.9 GB; ...
    """
    available = available_bytes() if available is None else available
    total = sum(parts.values())
    if available is not None and total > available:
        arithmetic = " + ".join(f"{format_bytes(size)} {name}" for name, size in parts.items())
        raise NotEnoughMemoryError(
            f"{arithmetic} = {format_bytes(total)}, available {format_bytes(available)}; {remedy}"
        )


def attention_bytes(config: Config, rows: int, length: int, tile: tuple[int, int], texts: int = 1) -> int:
    """The largest temporaries of attention over `length` keys: `rows` queries in tiles, then one query of each text."""
    heads, width = config.num_attention_heads, config.head_dim
    tiles = 4 * min(rows, tile[0]) * min(length, tile[1]) + 2 * rows * width  # four of a tile's size; the result
    masks = 3 * rows * length  # in bytes: causal, window, both
    return 4 * heads * max(tiles, 3 * length * texts) + masks


def check_generation(
    config: Config,
    capacity: int,
    rows: int,
    cache_dtype: str | None,
    available: int | None = None,
    *,
    texts: int = 1,
    full_scores: bool = False,
) -> None:
    """Raise NotEnoughMemoryError if generation does not fit: a KV cache of `capacity` tokens, passes of `rows` tokens.

    Attention goes tile by tile, except in a family that needs all scores at once, or with `full_scores`: there the tile
    is the whole.

    cache_dtype : the dtype of the KV cache to allocate; None if there is one already
    texts : how many there are in a batch; they are prefilled one at a time
    """
    tile = (rows, capacity) if full_scores or family_of(config).full_scores else TILE
    needed = {"attention": attention_bytes(config, rows, capacity, tile, texts)}
    if cache_dtype is not None:
        needed["KV cache"] = kv_cache_bytes(config, texts * capacity, CACHE_DTYPES[cache_dtype])
        if CACHE_DTYPES[cache_dtype] < 4:
            needed["a layer of it in float32"] = kv_cache_bytes(config, texts * capacity) // config.num_hidden_layers
    check_memory(needed, available)


def available_bytes() -> int | None:
    """The memory that this process can still allocate, in bytes: the smallest of all limits. None if unknown.

    The limits are the machine's free memory, the control groups of the process (a container's limit), and its address
    space (`ulimit -v`). Page cache counts as free.
    """
    limits = [limit for limit in (machine_bytes(), *control_group_bytes(), address_space_bytes()) if limit is not None]
    return max(0, min(limits)) if limits else None


def machine_bytes() -> int | None:
    """The memory available without swapping (Linux), or the machine's whole memory (other Unix)."""
    meminfo = read_numbers("/proc/meminfo")
    if "MemAvailable:" in meminfo:
        return meminfo["MemAvailable:"] * 1024
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def control_group_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Limit minus usage of each control group of the process, from its own up to the root; versions 1 and 2."""
    lines = own.read_text().splitlines() if own.exists() else []
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number == "0":
            top, limit_name, usage_name, prefix = root, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            top, limit_name, usage_name = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix = "total_"
        else:
            continue
        group = top / path.strip("/")  # inside a container the path may be "/", or one that exists only on the host
        for folder in (group, *group.parents):
            if folder.is_relative_to(top) and (folder / limit_name).exists():
                limit = (folder / limit_name).read_text().strip()
                if limit != "max":
                    cached = read_numbers(folder / "memory.stat")
                    files = cached.get(f"{prefix}inactive_file", 0) + cached.get(f"{prefix}active_file", 0)
                    yield int(limit) - int((folder / usage_name).read_text()) + files


def peak_bytes() -> int | None:
    """The peak memory of this process so far, in bytes; None on Windows."""
    status = read_numbers("/proc/self/status")
    if "VmHWM:" in status:  # Linux, where getrusage starts from the peak of the parent process
        return status["VmHWM:"] * 1024
    if sys.platform == "win32":
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_numbers(path: str | Path) -> dict[str, int]:
    """The "name number" lines of a file, as in /proc and control groups; empty if the file does not exist."""
    path = Path(path)
    lines = (line.split() for line in path.read_text().splitlines()) if path.exists() else ()
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
