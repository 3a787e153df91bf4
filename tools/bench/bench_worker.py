"""One side of tools/bench/bench_peers.py, as a process that runs a round on request.

    python tools/bench/bench_worker.py npllm|transformers|llama.cpp|reader

Each line of stdin is a request, {"do": NAME, ...}; the answer is a line of JSON. Sides are separate processes because
their thread pools and BLAS libraries would interfere; all stay alive, so that rounds can alternate. Anything that a
library prints goes to stderr.

No side maps its files: the kernel reclaims idle mapped pages, and the next round would pay for reading them again.
"""

import json
import os
import sys
import threading
import time
import warnings
from typing import Any

import numpy as np

import npllm
from npllm.apps import speed
from npllm.apps.bench import endless, timed
from npllm.apps.speculation import prompt_lookup
from npllm.checkpoint.hub import find
from npllm.devices.memory import peak_bytes
from npllm.lm import lm_head, transform
from npllm.loop import as_ids

THREADS = int(os.environ.get("NPLLM_BENCH_THREADS") or speed.cores())
SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)


class Npllm:
    """npllm as users run it, through `npllm.steps`."""

    def load(self, model: str | None, dtype: str, kernels: bool = True) -> dict[str, Any]:
        self.lm = npllm.load(model, dtype=dtype, kernels=kernels)
        self.caches: dict[tuple[int, int], Any] = {}
        return speed.sizes(self.lm)

    def decode(self, ids: list[int], tokens: int) -> dict[str, Any]:
        seconds, made = speed.decode(self.lm, ids, self.cache(ids, tokens), tokens)
        return {"seconds": seconds, "ids": made, "read": speed.decode_read(self.lm, len(ids), tokens)._asdict()}

    def cache(self, ids: list[int], tokens: int) -> Any:
        """A cache that holds the ids, with room for the tokens and one more; filled once, and used in all rounds."""
        key = (len(ids), tokens)
        if key not in self.caches:
            self.caches[key] = speed.filled_cache(self.lm, ids, tokens + 1)
        return self.caches[key]

    def one_pass(self, ids: list[int], tokens: int, repeat: int) -> dict[str, Any]:
        """The mean time of a pass over that many tokens at once after `ids`, with the logits of all of them."""
        cache, new = self.cache(ids, tokens), np.array((ids * tokens)[:tokens])
        started = time.perf_counter()
        for _ in range(repeat):
            cache["length"] = len(ids)
            hidden, _ = transform(new, self.lm, cache, total_length=len(ids) + tokens)
            lm_head(hidden, self.lm)
        return {"seconds": (time.perf_counter() - started) / repeat}

    def prompts(self, prompts: list[list[int]], tokens: int, together: bool) -> dict[str, Any]:
        """The time of several prompts, together or one after the other; and the ids of all."""
        lm = endless(self.lm)
        started = time.perf_counter()
        if together:
            made = npllm.generate(lm, prompts, max_new_tokens=tokens)
        else:
            made = [npllm.generate(lm, ids, max_new_tokens=tokens) for ids in prompts]
        return {"seconds": time.perf_counter() - started, "ids": [each.ids for each in made]}

    def prefill(self, ids: list[int]) -> dict[str, Any]:
        return {"seconds": speed.prefill(self.lm, ids)}

    def matmul(self, tokens: int) -> dict[str, Any]:
        """The time of a bare matrix product with as many operations as the products of a prefill."""
        flops = speed.product_flops(self.lm, tokens)
        return {"seconds": flops / speed.bare_matmul(self.lm, tokens, flops), "flops": flops}

    def with_and_without_cache(self, prompt: str, tokens: int) -> dict[str, Any]:
        """The chapter's two cells."""
        ids = as_ids(self.lm, prompt)
        runs = {name: timed(self.lm, ids, tokens, use) for name, use in (("with", True), ("without", False))}
        return {name: run.seconds for name, run in runs.items()} | {"same": runs["with"].ids == runs["without"].ids}

    def lookup(self, prompt: str, tokens: int, drafted: int) -> dict[str, Any]:
        """The same tokens with and without prompt lookup."""
        ids, result, made = as_ids(self.lm, prompt), {}, {}
        for name, options in (("without", {}), ("with", {"tokens": prompt_lookup(drafted)})):
            started = time.perf_counter()
            made[name] = npllm.generate(endless(self.lm), ids, max_new_tokens=tokens, **options).ids
            result[name] = time.perf_counter() - started
        return result | {"same": made["with"] == made["without"]}

    def load_to_first_token(self, model: str | None, dtype: str, tokens: int) -> dict[str, Any]:
        return speed.load_once({"name": model, "dtype": dtype}, tokens)

    def memory(self) -> dict[str, Any]:
        return {"peak_bytes": peak_bytes(), "resident_bytes": speed.resident_bytes()}


class Reader:
    """Measures the memory bandwidth, and can keep a core busy."""

    def load(self) -> dict[str, Any]:
        self.numbers, self.stop = speed.bandwidth_buffer(np.zeros(1)), threading.Event()
        return {"bytes": self.numbers.nbytes}

    def bandwidth(self) -> dict[str, Any]:
        return {"bytes_per_second": speed.read_bandwidth(self.numbers, THREADS)}

    def spin(self, on: bool) -> dict[str, Any]:
        """Start or stop a loop that does nothing, on one core."""
        self.stop.set()
        if on:
            self.stop = threading.Event()
            threading.Thread(target=self.spin_on, args=(self.stop,), daemon=True).start()
        return {}

    def spin_on(self, stop: threading.Event) -> None:
        while not stop.is_set():
            pass


class Transformers:
    """transformers as a loop of bare forward passes, its fastest form."""

    def load(self, model: str | None, dtype: str) -> dict[str, Any]:
        import torch
        import transformers

        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(THREADS)
        kind = getattr(torch, dtype)
        if model is None:  # a .gguf file
            self.model = in_transformers(npllm.load(None, dtype="float32")).to(kind)
        else:
            self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=kind).eval()
        for parameter in self.model.parameters():
            # Neither mapped nor shared, and row-major.
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        self.torch, self.new_cache = torch, transformers.DynamicCache
        self.cache: Any = None
        return {"parameters": sum(parameter.numel() for parameter in self.model.parameters())}

    def decode(self, ids: list[int], tokens: int) -> dict[str, Any]:
        with self.torch.inference_mode():
            if self.cache is None or self.prompt != ids:
                self.cache, self.prompt = self.new_cache(), ids
                self.model(self.torch.tensor([ids[:-1]]), past_key_values=self.cache)
            if added := self.cache.get_seq_length() - (len(ids) - 1):
                self.cache.crop(-added)
            made = [self.next(ids[-1])]
            started = time.perf_counter()
            for _ in range(tokens):
                made.append(self.next(made[-1]))
            return {"seconds": (time.perf_counter() - started) / tokens, "ids": made}

    def next(self, token: int) -> int:
        logits = self.model(self.torch.tensor([[token]]), past_key_values=self.cache).logits
        return int(logits[0, -1].argmax())

    def prefill(self, ids: list[int]) -> dict[str, Any]:
        with self.torch.inference_mode():
            started = time.perf_counter()
            logits = self.model(self.torch.tensor([ids]), past_key_values=self.new_cache(), logits_to_keep=1).logits
            int(logits[0, -1].argmax())
            return {"seconds": time.perf_counter() - started}


class LlamaCpp:
    """llama.cpp, timed by its own server; the prompt stays cached between rounds."""

    def load(self, model: str | None, dtype: str) -> dict[str, Any]:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = model or str(find(None, None, None, True))
        params.n_ctx, params.n_parallel, params.n_gpu_layers = 1024, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
        params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE  # neither mapped nor direct
        params.verbosity = -1
        self.server = xllamacpp.Server(params)
        return {"features": xllamacpp.get_system_info()}

    def ask(self, ids: list[int], tokens: int, **more: Any) -> dict[str, Any]:
        greedy = {"prompt": ids, "n_predict": tokens, "temperature": 0, "ignore_eos": True}
        answer = self.server.handle_completions(greedy | more)
        if "timings" not in answer:
            raise RuntimeError(f"llama.cpp answered {answer}")
        return answer

    def decode(self, ids: list[int], tokens: int) -> dict[str, Any]:
        timings = self.ask(ids, tokens + 1, cache_prompt=True)["timings"]  # counted from the first token on
        return {"seconds": timings["predicted_ms"] / 1000 / (timings["predicted_n"] - 1)}

    def first(self, ids: list[int]) -> dict[str, Any]:
        """The most likely token, to check that it is the same model."""
        content = self.ask(ids, 1, cache_prompt=False, logprobs=1)["choices"][0]["logprobs"]["content"]
        return {"ids": [token["id"] for token in content]}

    def prefill(self, ids: list[int]) -> dict[str, Any]:
        return {"seconds": self.ask(ids, 1, cache_prompt=False)["timings"]["prompt_ms"] / 1000}


SIDES = {"npllm": Npllm, "transformers": Transformers, "llama.cpp": LlamaCpp, "reader": Reader}


def in_transformers(lm: npllm.LM) -> Any:
    """The model as a Phi3ForCausalLM, or as a LlamaForCausalLM with separate projections.

    The weights are npllm's in float32, shared where npllm stores them row-major.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    c, w = lm.config, lm.weights
    fused = c.family == "phi3"
    inner, q_rows, k_rows = c.intermediate_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    w = w._replace(embed_tokens=by_rows(w.embed_tokens), lm_head=by_rows(w.lm_head))
    arrays = {"model.embed_tokens": w.embed_tokens, "model.norm": w.norm, "lm_head": w.lm_head}
    for i, packed in enumerate(w.layers):
        block = type(packed)(*map(by_rows, packed))
        arrays |= {
            f"model.layers.{i}.input_layernorm": block.input_layernorm,
            f"model.layers.{i}.post_attention_layernorm": block.post_attention_layernorm,
            f"model.layers.{i}.self_attn.o_proj": block.o_proj,
            f"model.layers.{i}.mlp.down_proj": block.down_proj,
        }
        if fused:
            arrays[f"model.layers.{i}.self_attn.qkv_proj"] = block.qkv_proj
            arrays[f"model.layers.{i}.mlp.gate_up_proj"] = block.gate_up_proj
        else:
            q, k, v = np.split(block.qkv_proj, [q_rows, q_rows + k_rows])
            arrays |= {f"model.layers.{i}.self_attn.{name}_proj": x for name, x in zip("qkv", (q, k, v), strict=True)}
            arrays[f"model.layers.{i}.mlp.gate_proj"] = block.gate_up_proj[:inner]
            arrays[f"model.layers.{i}.mlp.up_proj"] = block.gate_up_proj[inner:]
    keys = {key: getattr(c, key) for key in SHARED_KEYS}
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    config = (Phi3Config if fused else LlamaConfig)(**keys, rope_parameters=rope, pad_token_id=0)
    with torch.device("meta"):
        model = (Phi3ForCausalLM if fused else LlamaForCausalLM)(config)
    model.load_state_dict({f"{name}.weight": torch.from_numpy(x) for name, x in arrays.items()}, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # not weights: rebuild them off "meta"
    return model.eval()


def by_rows(weight: Any) -> np.ndarray | None:
    """A weight as a plain row-major array, however npllm stores it."""
    if weight is None or isinstance(weight, np.ndarray):
        return None if weight is None else np.ascontiguousarray(weight)
    return weight.rows(np.arange(weight.shape[0]))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # also what a library prints from C
    side = SIDES[sys.argv[1]]()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(side, request.pop("do"))(**request)
        except Exception as error:  # noqa: BLE001 - report any error to the caller
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
