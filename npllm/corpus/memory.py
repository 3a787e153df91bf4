"""Estimates memory before computing, and how many records fit at once."""

from ..cache import CACHE_DTYPES, kv_cache_bytes
from ..compiled.step import LARGEST
from ..config import Config
from ..devices.memory import attention_bytes, check_memory
from ..families import family_of
from ..flash import TILE
from ..lm import LM
from ..loop import PREFILL_CHUNK
from .records import LOGPROBS, OPTIONS, Job, Task
from .vectors import BYTES
from .work import ROWS

# Bytes of a process besides its model and arrays, measured: Python objects of a window of records and their results,
# the loops' machine code, and what allocators keep.
OVERHEAD = 150_000_000
VECTOR_BUFFER = 2 * BYTES  # embed: the vectors of one file and, for parquet, the encoded file
RECORD = 300  # bytes in the main process for each record of the input: its id, in a dict and in a set
LISTED = 2 * 120  # bytes of a token listed as likely, with its log-probability: in a step, and in the result
REMEDY = "use a smaller model, raise --memory, or lower --workers"


def needed(lm: LM, task: Task, texts: int, longest: int, listed: int = 0) -> dict[str, int]:
    """Bytes, by component, to run `texts` texts of up to `longest` tokens, excluding weights.

    listed : the tokens listed as likely for a text (logprobs), in all its steps
    """
    config = lm.config
    chunk = longest if task.name == "embed" else min(longest, PREFILL_CHUNK)
    whole = task.name == "embed" or family_of(config).full_scores
    attention = attention_bytes(config, chunk, longest, (chunk, longest) if whole else TILE, texts)
    found = {"attention": attention, "activations": activation_bytes(config, max(chunk, texts)), "overhead": OVERHEAD}
    if task.name == "embed":
        return found | {"vectors to write": VECTOR_BUFFER}
    # generate: logits of each text in float32, and while one of them samples, up to six arrays in float64; score: of
    # ROWS tokens at a time in float32, and up to five arrays in float64 (log_probabilities)
    logits = {"generate": texts * 4 + 6 * 8, "score": ROWS * (4 + 5 * 8)}[task.name]
    cached = longest * (1 if task.name == "score" else texts)
    if CACHE_DTYPES[task.cache_dtype] < 4:
        found["a layer of the KV cache in float32"] = kv_cache_bytes(config, cached) // config.num_hidden_layers
    return found | {
        "KV cache": kv_cache_bytes(config, cached, CACHE_DTYPES[task.cache_dtype]),
        "logits": logits * config.vocab_size,
        "logprobs": LISTED * listed * texts,
    }


def activation_bytes(config: Config, rows: int) -> int:
    """Peak bytes of a pass over `rows` tokens, apart from attention, in float32.

    At most 8 arrays as wide as the hidden state (the residual stream, norms, sums), 3 as wide as q, k and v together
    (before and after RoPE), and 5 as wide as the feedforward's hidden layer (gate, up, activation, product).
    """
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    return 4 * rows * (8 * config.hidden_size + 3 * heads + 5 * config.intermediate_size)


def most_texts(task: Task) -> int:
    """How many texts run at once at most: those of a compiled step; scores and vectors are computed text by text."""
    return LARGEST if task.name == "generate" else 1


def texts_within(lm: LM, task: Task, longest: int, budget: int | None, listed: int = 0) -> int:
    """How many texts run at once: as many as a compiled step takes, or fewer if memory is short. 0 if not even one
    fits."""
    fitting = (
        n
        for n in range(most_texts(task), 0, -1)
        if budget is None or sum(needed(lm, task, n, longest, listed).values()) <= budget
    )
    return next(fitting, 0)


def most_bytes(lm: LM, task: Task, budget: int | None, batch_size: int | None = None) -> int:
    """Upper bound, excluding weights, for any record length."""
    texts = min(most_texts(task), batch_size or LARGEST)
    top, new = task.options.get(LOGPROBS) or 0, task.options.get("max_new_tokens", OPTIONS["max_new_tokens"])
    bound = sum(needed(lm, task, texts, lm.config.max_position_embeddings, top * new).values())
    return bound if budget is None else min(budget, bound)


def least_bytes(lm: LM, task: Task) -> int:
    """What the shortest record takes, excluding weights."""
    return sum(needed(lm, task, 1, 2).values())


def budget(total: int | None, processes: int, own: int, least: int = OVERHEAD) -> int | None:
    """Bytes each process may use beyond the `own` it already uses; None: no limit is known.

    Raises NotEnoughMemoryError if that is less than `least`, what the shortest record takes.
    """
    if total is None:
        return None
    parts = {f"for {processes} x the model": processes * own, "for the shortest record in each": processes * least}
    check_memory(parts, total, REMEDY)
    return total // processes - own


def length(job: Job) -> int:
    """Tokens of the text including all new ones."""
    return len(job.ids) + job.options.get("max_new_tokens", 0)


def listed(job: Job) -> int:
    """The tokens listed as likely for a text, in all its steps."""
    return job.options.get("top_logprobs", 0) * job.options.get("max_new_tokens", 0)


def check_fits(lm: LM, task: Task, job: Job, budget: int | None) -> None:
    """Raise NotEnoughMemoryError for a record that does not fit even alone."""
    if budget is not None:
        check_memory(needed(lm, task, 1, length(job), listed(job)), budget, REMEDY)
