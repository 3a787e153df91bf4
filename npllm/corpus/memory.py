"""The memory that records take, counted before anything is computed; how many run at once within a budget."""

from ..cache import CACHE_DTYPES, kv_cache_bytes
from ..compiled.step import LARGEST
from ..config import Config
from ..devices.memory import attention_bytes, check_memory
from ..devices.units import format_bytes
from ..families import family_of
from ..flash import TILE
from ..lm import LM
from ..loop import PREFILL_CHUNK
from .records import Job, Task
from .work import ROWS

HELD = 150_000_000  # bytes: a window of records, their results, the loops' machine code, and what allocators keep
REMEDY = "free memory, or take a smaller model, a larger --memory, or fewer --workers"
FILE = 2**29  # embed: the vectors of a file, and those that are written


def needed(lm: LM, task: Task, texts: int, longest: int) -> dict[str, int]:
    """What some texts of at most `longest` tokens take at once, beside the weights: bytes by name."""
    config = lm.config
    chunk = longest if task.name == "embed" else min(longest, PREFILL_CHUNK)
    whole = task.name == "embed" or family_of(config).full_scores
    attention = attention_bytes(config, chunk, longest, (chunk, longest) if whole else TILE, texts)
    found = {"attention": attention, "vectors": vectors_bytes(config, max(chunk, texts)), "the rest": HELD}
    if task.name == "embed":
        return found | {"a file's vectors": FILE}
    logits = 6 * 8 * ROWS if task.name == "score" else 4 * texts + 6 * 8
    cached = longest * (1 if task.name == "score" else texts)
    return found | {
        "KV cache": kv_cache_bytes(config, cached, CACHE_DTYPES["float32"]),
        "logits": logits * config.vocab_size,
    }


def vectors_bytes(config: Config, rows: int) -> int:
    """What a pass over so many tokens holds at a time, attention aside: the streams, and the vectors within a block."""
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    return 4 * rows * (8 * config.hidden_size + 3 * heads + 5 * config.intermediate_size)


def texts_within(lm: LM, task: Task, longest: int, budget: int | None) -> int:
    """How many texts run at once: as many as a compiled step takes, or fewer if memory is short. 0: not even one."""
    most = LARGEST if task.name == "generate" else 1
    fitting = (n for n in range(most, 0, -1) if budget is None or sum(needed(lm, task, n, longest).values()) <= budget)
    return next(fitting, 0)


def most_bytes(lm: LM, task: Task, budget: int | None) -> int:
    """What the records take at most beside the weights, however long they are."""
    all_at_once = sum(needed(lm, task, LARGEST, lm.config.max_position_embeddings).values())
    return all_at_once if budget is None else min(budget, all_at_once)


def budget(total: int | None, processes: int, own: int) -> int | None:
    """What each of some processes may take beside what it has already, which is `own` bytes; None: unknown.

    Raises NotEnoughMemoryError if that is nothing.
    """
    if total is None:
        return None
    left = total // processes - own
    check_memory(
        {f"{processes} x {format_bytes(own)} for the model": processes * own, "records": processes * HELD},
        total,
        REMEDY,
    )
    return left


def length(job: Job) -> int:
    """The tokens of a text when it has ended."""
    return len(job.ids) + job.options.get("max_new_tokens", 0)


def check_fits(lm: LM, task: Task, job: Job, budget: int | None) -> None:
    """Raise NotEnoughMemoryError for a record that does not fit even alone."""
    if budget is not None:
        check_memory(needed(lm, task, 1, length(job)), budget, REMEDY)
