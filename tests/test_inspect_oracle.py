"""Inspection compared with transformers: every value, interventions, perplexity and divergence."""

import copy

import numpy as np
import pytest
from bridge import tool
from default_model import needs_default_model
from families import KEYS
from test_oracle import CLASSES, random_config_keys
from tolerance import assert_close

import npllm
from npllm.apps.evaluate import evaluate, joined, perplexity, reference
from npllm.inspect.attribution import attribution
from npllm.inspect.compare import compare, first_beyond
from npllm.inspect.patch import zero_head, zero_neuron
from npllm.inspect.trace import trace

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]  # transformers issues warnings of its own
PROMPT = (
    "The dog chased the squirrel because it was hungry, and when the squirrel had climbed a tree,"
    " the dog sat down below it and waited until it was dark."
)
OTHER = PROMPT.replace("dog", "cat").replace("squirrel", "sparrow").replace("hungry", "afraid")


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    module = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[oracle]'")
    module.utils.logging.disable_progress_bar()
    return module


@pytest.fixture(scope="module")
def golden(transformers):
    """tools/golden/make_golden.py, which randomizes a model's weights and runs transformers."""
    return tool("make_golden")


@pytest.fixture(scope="module")
def default(golden):
    """The default model in transformers and in npllm, and the ids of two 32-token prompts."""
    model, _ = golden.load_default_model()
    lm = npllm.load(dtype="float32")
    ids, others = (lm.tokenizer.encode(prompt)[:32] for prompt in (PROMPT, OTHER))
    assert len(ids) == len(others) == 32
    assert ids != others
    return model, lm, ids, others


@pytest.fixture(
    scope="module", params=[name for name in CLASSES if name != "gemma3"]
)  # its pass is that of gemma3_text
def tiny(request, transformers, golden, tmp_path_factory):
    """A tiny random model in transformers and in npllm, and two prompts."""
    path = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(CLASSES.index(request.param))
    keys = random_config_keys(request.param, rng) | {"num_hidden_layers": 2}
    if "layer_types" in keys:
        keys["layer_types"] = (2 * keys["layer_types"])[:2]
    config = transformers.AutoConfig.for_model(request.param, **keys)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=golden.torch.float32)
    golden.randomize(model, 0)
    model.save_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=golden.torch.float32, **golden.EAGER)
    ids, others = (rng.integers(0, config.vocab_size, 9).tolist() for _ in range(2))
    return model, npllm.load(path), ids, others


# Every value


@needs_default_model
def test_every_value_of_a_32_token_prompt_is_that_of_transformers(default):
    model, lm, ids, _ = default
    expected, got = tool("hf_trace").trace(model, ids), trace(lm, ids)
    assert [name for name in expected if not name.endswith(".visible")] == list(got)
    assert len(got) == 513
    for name, value in got.items():
        visible = expected[name.replace(".scores", ".visible")] == 1 if name.endswith(".scores") else None
        assert_close(name, value, expected[name], where=visible)
    assert first_beyond(compare(expected, got)) is None
    assert first_beyond(compare(expected, trace(lm, ids, chunks=[31, 1]))) is None


# Interventions: a patch on our side, an equivalent hook on theirs


def hooked(golden, model, ids, module, change, before=False):
    """The logits of transformers while a hook changes a module's output, or its input if `before`."""

    def change_output(_, args, out):
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    def change_input(_, args):
        return (change(args[0]), *args[1:])

    handle = module.register_forward_pre_hook(change_input) if before else module.register_forward_hook(change_output)
    try:
        with golden.torch.no_grad():
            return model(golden.torch.tensor([ids])).logits[0].numpy()
    finally:
        handle.remove()


def patched(lm, ids, changes):
    logits, _ = npllm.forward(np.asarray(ids), lm, tap=npllm.patch(changes))
    return logits


def check_interventions(golden, model, lm, ids, others, layers, heads, neurons):
    """Every intervention on some layers: each changes the logits, and in the same way in both libraries."""
    plain = patched(lm, ids, {})
    width = lm.config.head_dim
    donor = trace(lm, others, "*.residual_*,*.output,*.mixed,embedding")

    def check(name, changes, *hook, **where):
        got = patched(lm, ids, changes)
        assert_close(name, got, hooked(golden, model, ids, *hook, **where))
        assert np.abs(got - plain).max() > 1e-3 * np.abs(plain).max(), f"{name}: nothing changed"

    for layer in layers:
        block = model.model.layers[layer]
        for head in heads:

            def without_head(mixed, head=head):
                mixed = mixed.clone()
                mixed[..., head * width : (head + 1) * width] = 0
                return mixed

            change = {f"layers.{layer}.attention.mixed": zero_head(head)}
            check(f"layer {layer} without head {head}", change, block.self_attn.o_proj, without_head, before=True)

        if neurons:  # experts have no activation that all tokens share
            name = f"layers.{layer}.feedforward.activation"

            def without_neurons(activation):
                activation = activation.clone()
                activation[..., list(neurons)] = 0
                return activation

            def zeros(activation):
                activation[..., list(neurons)] = 0
                return activation

            check(f"layer {layer} without neurons", {name: zeros}, block.mlp.down_proj, without_neurons, before=True)
            assert np.array_equal(
                patched(lm, ids, {name: zero_neuron(neurons[0])}),
                patched(lm, ids, {name: lambda value: np.where(np.arange(value.shape[-1]) == neurons[0], 0, value)}),
            )

        # Activation patching: another prompt's activations, at one token or at all of them.
        for leaf, module in (
            ("residual_after_feedforward", block),
            ("attention.output", block.self_attn.o_proj),
            ("feedforward.output", block.mlp),
        ):
            name, token = f"layers.{layer}.{leaf}", len(ids) // 2

            def at_one_token(value, name=name, token=token):
                value[token] = donor[name][token]
                return value

            def the_same(out, name=name, token=token):
                out = out.clone()
                out[0, token] = golden.torch.from_numpy(donor[name][token])
                return out

            def all_of_it(out, name=name):
                return golden.torch.from_numpy(donor[name])[None]

            check(f"{name} of another prompt at one token", {name: at_one_token}, module, the_same)
            check(f"{name} of another prompt", {name: donor[name]}, module, all_of_it)


def test_interventions_in_tiny_models_do_what_hooks_in_transformers_do(golden, tiny):
    model, lm, ids, others = tiny
    heads = range(lm.config.num_attention_heads)
    neurons = [] if hasattr(lm.weights.layers[0], "experts") else [0]
    check_interventions(golden, model, lm, ids, others, layers=[0], heads=heads, neurons=neurons)


@needs_default_model
@pytest.mark.slow
def test_interventions_in_the_default_model_do_what_hooks_in_transformers_do(golden, default):
    check_interventions(golden, *default, layers=[1, 28], heads=[4], neurons=range(0, 1536, 2))


def test_edited_attention_weights_do_what_an_edited_softmax_does(golden, tiny, monkeypatch):
    """Every query moves half of the weight on itself to the first token."""
    model, lm, ids, _ = tiny
    edits = []

    def edit(weights):
        """Edit the array, of either library, in place."""
        own = range(1, len(ids))
        for t in own:
            weights[..., 0, t, 0] += 0.5 * weights[..., 0, t, t]
            weights[..., 0, t, t] *= 0.5
        edits.append(1)
        return weights

    expected = patched(lm, ids, {"layers.*.attention.weights": edit})
    torch = golden.torch
    softmax = torch.nn.functional.softmax

    def edited(scores, *args, **options):
        weights = softmax(scores, *args, **options)
        return edit(weights.clone()) if weights.ndim == 4 else weights

    model.set_attn_implementation("eager")
    monkeypatch.setattr(torch.nn.functional, "softmax", edited)
    with torch.no_grad():
        got = model(torch.tensor([ids])).logits[0].numpy()
    assert len(edits) == 4, "two layers here, two there"
    assert_close("logits", expected, got)
    monkeypatch.undo()
    assert np.any(np.abs(expected - patched(lm, ids, {})) > 1e-3)


# Perplexity


def losses_of(golden, model, ids, window, stride):
    """The mean loss over a text in windows, computed by the loop from transformers' documentation."""
    torch = golden.torch
    total, count, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        part = torch.tensor([ids[begin:end]])
        targets = part.clone()
        targets[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = model(part, labels=targets).loss.double().item()
        scored = int((targets[:, 1:] != -100).sum())  # the model shifts the labels, so the first is never scored
        total, count, before = total + loss * scored, count + scored, end
        if end == len(ids):
            break
    assert count == len(ids) - 1
    return total / count


@needs_default_model
@pytest.mark.parametrize(("window", "stride"), [(512, 256), (24, 8)])
def test_perplexity_is_that_of_transformers(golden, default, window, stride):
    model, lm, *_ = default
    ids = lm.tokenizer.encode(f"{PROMPT} {OTHER}")
    got = perplexity(joined(evaluate(lm, ids, window, stride)).losses)
    assert got == pytest.approx(np.exp(losses_of(golden, model, ids, window, stride)), rel=1e-5)


def test_losses_and_divergence_are_those_of_torch(transformers, golden, tiny, tmp_path):
    model, lm, *_ = tiny
    torch = golden.torch
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path)
    rounded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **golden.EAGER)
    ids = np.random.default_rng(3).integers(0, lm.config.vocab_size, 40).tolist()
    *_, against = reference(lm, ids, 40, 20)
    got = joined(evaluate(npllm.load(tmp_path), ids, 40, 20, against))
    with torch.no_grad():
        p, q = (torch.log_softmax(m(torch.tensor([ids])).logits[0, :-1].double(), dim=-1) for m in (model, rounded))
    divergence = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)
    losses = torch.nn.functional.nll_loss(q, torch.tensor(ids[1:]), reduction="none")
    np.testing.assert_allclose(got.losses, losses.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.divergences, divergence.numpy(), rtol=1e-2, atol=1e-7)
    np.testing.assert_array_equal(got.same_top, (p.argmax(-1) == q.argmax(-1)).numpy())
    if not lm.config.family.startswith("gemma"):  # there one token gets nearly everything
        assert divergence.max() > 1e-5


# Attribution: the parts of a logit from torch's weights and hooked inputs, in float64


def torch_parts(golden, model, ids, token, gpt2):
    """(heads [L, N], feedforward [L]): what each adds to the last logit of a token, with the scale of this run."""
    torch, seen = golden.torch, {}
    base = model.transformer if gpt2 else model.model
    blocks, norm = (base.h, base.ln_f) if gpt2 else (base.layers, base.norm)
    projections = [block.attn.c_proj if gpt2 else block.self_attn.o_proj for block in blocks]

    def keep(name, of_input):
        def hook(_, args, out):
            seen[name] = (args[0] if of_input else out)[0, -1].double()

        return hook

    handles = [norm.register_forward_hook(keep("stream", True))]
    for layer, block in enumerate(blocks):
        handles += [projections[layer].register_forward_hook(keep(f"mixed {layer}", True))]
        handles += [block.mlp.register_forward_hook(keep(f"network {layer}", False))]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()

    stream, row = seen["stream"], model.lm_head.weight[token].detach().double()
    centred = stream - stream.mean() if gpt2 else stream
    eps = norm.eps if gpt2 else norm.variance_epsilon
    scale = torch.sqrt((centred**2).mean() + eps)

    def logit(part):
        part = part - part.mean() if gpt2 else part
        return float(row @ (part / scale * norm.weight.detach().double()))

    heads, width = model.config.num_attention_heads, len(seen["mixed 0"]) // model.config.num_attention_heads
    of_heads = np.zeros((len(blocks), heads))
    for layer, projection in enumerate(projections):
        matrix = projection.weight.detach().double()
        matrix = matrix if gpt2 else matrix.T  # [in, out]
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            of_heads[layer, head] = logit(seen[f"mixed {layer}"][own] @ matrix[own])
    return of_heads, np.array([logit(seen[f"network {layer}"]) for layer in range(len(blocks))])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_parts_of_a_logit_are_those_of_torch(transformers, golden, tmp_path, name):
    rng = np.random.default_rng(7)
    config = transformers.AutoConfig.for_model(name, **KEYS[name])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=golden.torch.float32)
    golden.randomize(model, 1)
    model.save_pretrained(tmp_path)
    ids = rng.integers(0, config.vocab_size, 9).tolist()
    found = attribution(npllm.load(tmp_path), ids, 5)
    heads, networks = torch_parts(golden, model.eval(), ids, 5, name == "gpt2")
    np.testing.assert_allclose(found.heads, heads, rtol=1e-3, atol=1e-4 * np.abs(heads).max())
    np.testing.assert_allclose(found.feedforward, networks, rtol=1e-3, atol=1e-4 * np.abs(networks).max())


@needs_default_model
def test_the_parts_of_the_default_models_logit_are_those_of_torch(golden, default):
    model, lm, ids, _ = default
    token = int(npllm.forward(ids, lm)[0][-1].argmax())
    found = attribution(lm, ids, token)
    heads, networks = torch_parts(golden, model, ids, token, gpt2=False)
    np.testing.assert_allclose(found.heads, heads, rtol=1e-2, atol=1e-3 * np.abs(networks).max())
    np.testing.assert_allclose(found.feedforward, networks, rtol=1e-2, atol=1e-3 * np.abs(networks).max())
