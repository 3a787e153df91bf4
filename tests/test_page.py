"""The page of `npllm inspect --html`: its contents, and its behaviour in headless Chromium."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from checkpoints import byte_tokenizer
from chromium import NAMELESS, WORST_CONTRAST, chromium, in_chromium
from default_model import needs_default_model
from hypothesis import given
from hypothesis import strategies as st
from models import random_gpt2_weights, random_weights, tiny_config, tiny_gpt2_config

from npllm import load
from npllm.errors import UsageError
from npllm.families.gpt2 import gpt2_transform
from npllm.inspect import page as pages
from npllm.inspect.contents import SECTIONS, STEPS, attention_bytes, contents, labels, token_label
from npllm.inspect.cost import costs, total
from npllm.inspect.funnel import funnel
from npllm.inspect.heads import without_first_token
from npllm.inspect.lens import likeliest, shares
from npllm.inspect.look import Look, lens, look, norms
from npllm.inspect.look import given as given_by_the_model
from npllm.inspect.page import content_hash, embedded, lab_page, page
from npllm.inspect.parts import PACKAGE
from npllm.inspect.tokens import token_bytes
from npllm.lm import LM
from npllm.sampling import choose

HOSTILE = '</script><img src=x onerror=alert(1)><!-- {{style}} "&amp;\u2028\u202e<b>'


def tiny_lm(seed=0, **keys) -> LM:
    """A tiny model with the tests' byte-level tokenizer; its distributions are neither flat nor one-hot."""
    config = tiny_config(vocab_size=len(byte_tokenizer()), max_position_embeddings=512, num_hidden_layers=3, **keys)
    return LM(config, random_weights(config, seed), byte_tokenizer(), {})


def seen_by(lm: LM, text: str) -> Look:
    return look(lm, lm.tokenizer.encode(text))


def data_of(html: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


# Contents of the page


def test_only_the_pages_own_style_and_script_are_allowed_by_their_hashes():
    html = page(seen_by(tiny_lm(), "Hello"), 5, "tiny")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for rule, tag in [("style-src", "style"), ("script-src", "script")]:
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules.keys() == {"default-src", "base-uri", "form-action", "style-src", "script-src"}


def test_the_page_of_the_lab_may_ask_its_own_server_and_nothing_else():
    html, policy = lab_page()
    assert f'content="{policy}"' in html
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "style-src": f"'{content_hash(re.search('<style>(.*?)</style>', html, re.DOTALL)[1])}'",
        "script-src": f"'{content_hash(re.search('<script>(.*?)</script>', html, re.DOTALL)[1])}'",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert html.count("<script") == html.count("<dialog") == 1
    assert {*SECTIONS} < {*re.findall(r'<section id="(\w+)"', html)}
    assert "{{" not in html


def test_the_pages_own_files_ask_for_nothing_and_never_read_data_as_html():
    texts = {path.name: pages.read(path.name) for path in Path(pages.__file__).with_suffix("").iterdir()}
    assert {"page.html", "page.css", "common.js", "start.js"} < texts.keys()
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(|XMLHttp|\bimport\b"
    )
    for name, text in texts.items():
        assert not re.search(forbidden, text.replace("fetch(`/api/", "") if name == "lab_requests.js" else text), name
        addresses = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[\w/]*", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"url\(|@import|<link|<img|\bsrc=|style=\"", text), name


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_data_cannot_leave_its_element(text):
    written = embedded({"text": text + HOSTILE})
    assert not set("<>&") & set(written)
    assert json.loads(written)["text"] == text + HOSTILE


def test_a_hostile_prompt_is_in_the_page_as_data_only():
    lm = tiny_lm()
    html = page(seen_by(lm, HOSTILE), 3, "<i>name</i>")
    assert "<img" not in html
    assert "<i>" not in html
    assert html.count("</script>") == 2
    assert data_of(html)["text"] == HOSTILE.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e")


@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.1, 30))
def test_attention_rows_sum_to_1_and_are_off_by_less_than_a_two_hundredth(seed, tokens, sharpness):
    scores = sharpness * np.random.default_rng(seed).standard_normal((2, tokens, tokens))
    weights = np.exp(scores) * np.tri(tokens)
    weights /= weights.sum(axis=-1, keepdims=True)
    kept = attention_bytes(weights)
    assert kept.shape == (2, tokens * (tokens + 1) // 2)
    for head in range(2):
        for row in range(tokens):
            squares = kept[head, row * (row + 1) // 2 : (row + 1) * (row + 2) // 2].astype(float) ** 2
            shown = squares / squares.sum()
            assert abs(shown - weights[head, row, : row + 1]).max() < 0.005
            assert (shown[weights[head, row, : row + 1] > 2e-5] > 0).all()


def test_attention_that_is_no_number_is_kept_as_nothing():
    assert attention_bytes(np.array([[[1.0, 0.0], [np.nan, 0.5]]])).tolist() == [[255, 0, 0]]


def test_tokens_show_their_spaces_and_what_does_not_print():
    assert [token_label(data) for data in (b" a b", b"\n", b"\xc3", None)] == ["␣a␣b", "\\n", "\\xc3", None]


@pytest.mark.parametrize("gpt2", [False, True])
def test_every_part_of_the_page_has_its_data(gpt2):
    if gpt2:
        config = tiny_gpt2_config()
        lm = LM(config, random_gpt2_weights(config), None, {}, gpt2_transform)
    else:
        config = tiny_config()
        lm = LM(config, random_weights(config), None, {})
    seen = look(lm, [3, 1, 4, 1])
    result = contents(seen, 2, "tiny")
    assert set(result["sections"]) | {"source"} == set(re.findall(r'<section id="(\w+)"', pages.read("page.html")))
    assert [value["group"] for value in result["flow"]] == sorted(
        (value["group"] for value in result["flow"]), key=["before", "attention", "feedforward", "after"].index
    )
    assert {value["name"] for value in result["flow"]} == {
        name.removeprefix("layers.0.") for name in seen.shapes if not name.startswith("layers.1.")
    }
    assert result["text"] == "#3 #1 #4 #1 "
    assert len(base64.b64decode(result["attention"])) == 2 * config.num_attention_heads * 10
    assert len(base64.b64decode(result["logits"])) == 4 * 11


def test_the_steps_of_the_cache_compute_what_the_costs_say():
    lm = tiny_lm()
    seen = look(lm, [40, 41, 42, 43, 44, 45, 46])
    steps = contents(seen, 4, "tiny")["cache"]["steps"]
    assert len(steps) == STEPS
    assert [step["made"] for step in steps] == [*seen.ids[4:], None, None, None, None, None]
    assert [step["tokens"] for step in steps] == list(range(4, 12))
    assert [step["with"]["streams"] for step in steps] == [4, 1, 1, 1, 1, 1, 1, 1]
    assert [step["without"]["streams"] for step in steps] == list(range(4, 12))
    for step in steps[1:]:
        past = step["tokens"] - 1
        assert step["with"]["flops"] == total(costs(lm.config, lm.weights, 1, past, scored=1)).flops
        assert step["without"]["flops"] == total(costs(lm.config, lm.weights, past + 1, scored=1)).flops
        assert step["with"]["bytes"] == sum(total(costs(lm.config, lm.weights, 1, past, scored=1))[2:])


@pytest.mark.slow
@needs_default_model
def test_the_page_of_64_tokens_of_the_default_model_is_less_than_5_mb():
    lm = load()
    html = page(look(lm, [504] * 64), 64, "SmolLM2-135M-Instruct")
    assert len(html.encode()) < 5_000_000


def test_a_page_of_some_sections_has_only_their_data():
    seen = seen_by(tiny_lm(), "Hello")
    keys = {
        "tokens": {"given", "ranks", "expected"},
        "flow": {"letters", "flow"},
        "attention": {"attention"},
        "lens": {"lens"},
        "norms": {"norms"},
        "funnel": {"logits"},
        "cache": {"cache"},
        "cost": {"cost"},
    }
    for name, own in keys.items():
        html = page(seen, 5, "tiny", only=[name])
        assert re.findall(r'<section id="(\w+)"', html) == [name]
        data = data_of(html)
        assert {key for key in data if key in set().union(*keys.values())} == own
        assert "listings" not in data
        assert set(data["vocabulary"]) >= {str(i) for i in seen.ids}
        assert ("<dialog" in html) == (name == "attention")
        assert "<header" not in html
        assert "<footer" not in html
        assert len(html.encode()) < 90_000
    assert set(data_of(page(seen, 5, "tiny", only=["funnel", "source"]))["listings"]) == {"npllm/sampling.py"}


def test_a_page_of_some_heads_has_only_their_maps():
    seen = seen_by(tiny_lm(), "Hello")
    data = data_of(page(seen, 5, "tiny", only=["attention"], heads=[(2, 3), (0, 1)]))
    expected = [seen.values["layers.2.attention.weights"][3], seen.values["layers.0.attention.weights"][1]]
    assert data["heads"] == [[2, 3], [0, 1]]
    assert base64.b64decode(data["attention"]) == attention_bytes(np.stack(expected)).tobytes()


def test_sections_and_heads_that_do_not_exist_are_refused():
    seen = seen_by(tiny_lm(), "Hello")
    with pytest.raises(UsageError, match=r"only: expected a list of 'tokens', .*, got 'token'"):
        page(seen, 5, "tiny", only=["token"])
    with pytest.raises(UsageError, match="got 'tokens'"):
        page(seen, 5, "tiny", only="tokens")
    for pair in [(3, 0), (0, 4), (-1, 0), (0, -1)]:
        with pytest.raises(UsageError, match=rf"heads 0 to 3, got \({pair[0]}, {pair[1]}\)"):
            page(seen, 5, "tiny", heads=[pair])


# In the browser


class Shown(NamedTuple):
    """A page in Chromium, and the look it shows."""

    tab: Any  # playwright's Page
    seen: Look
    events: list[str]  # every request, console message, exception and dialog


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def show(browser, tmp_path):
    """A function that opens the page of a look in a new window."""
    contexts = []

    def run(seen: Look, prompt_length=None, width=1280, height=900, zoom=1, scheme="light", **parts) -> Shown:
        path = tmp_path / "page.html"
        path.write_text(page(seen, prompt_length or len(seen.ids), "tiny", **parts), encoding="utf-8")
        contexts.append(
            browser.new_context(
                viewport={"width": width // zoom, "height": height // zoom},
                device_scale_factor=zoom,
                color_scheme=scheme,
            )
        )
        tab, events = contexts[-1].new_page(), []
        tab.on("request", lambda request: events.append(f"request {request.url}"))
        tab.on("requestfailed", lambda request: events.append(f"stopped by {request.failure}"))
        tab.on("console", lambda message: events.append(f"console {message.text}"))
        tab.on("pageerror", lambda error: events.append(f"error {error}"))
        tab.on("dialog", lambda dialog: (events.append(f"dialog {dialog.message}"), dialog.dismiss()))
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready=true]")
        assert events == [f"request {path.as_uri()}"]
        return Shown(tab, seen, events)

    yield run
    for context in contexts:
        context.close()


def share(text: str) -> float:
    """A percentage on the page, as a fraction."""
    return 5e-7 if text.startswith("<") else float(text.removesuffix("%").strip()) / 100


def bars(tab, where: str) -> dict[str, float]:
    """A list of bars as {label: share}; shares with the same label are added up."""
    result: dict[str, float] = {}
    for item in tab.locator(f"{where} li").all():
        label = item.locator(".token").text_content()
        result[label] = result.get(label, 0.0) + share(item.locator(".share").text_content())
    return result


def label(seen: Look, token: int) -> str:
    return token_label(token_bytes(seen.lm.tokenizer, [int(token)])[0])


def close(a: float, b: float) -> bool:
    """Whether two values agree to about three digits."""
    return abs(a - b) <= 0.006 * max(abs(a), abs(b)) + 1e-6


class TestInChromium:
    pytestmark = in_chromium

    def test_nothing_leaves_the_page_and_nothing_is_allowed_to(self, show):
        tab, _, events = show(seen_by(tiny_lm(), "The dog"))
        tab.evaluate(
            """() => {
                window.stopped = [];
                document.addEventListener("securitypolicyviolation", (event) => stopped.push(event.effectiveDirective));
                document.body.append(Object.assign(new Image(), { src: "https://other.invalid/a.png" }));
                const script = document.createElement("script");
                script.textContent = "window.ran = true";
                document.body.append(script);
                document.body.setAttribute("style", "color: red");
            }"""
        )
        tab.wait_for_function("stopped.length >= 3")
        assert sorted(tab.evaluate("stopped")) == ["img-src", "script-src-elem", "style-src-attr"]
        assert tab.evaluate("window.ran") is None
        asked = [event for event in events[1:] if not event.startswith("console")]  # the console reports all three
        assert asked == ["request https://other.invalid/a.png", "stopped by csp"]

    def test_a_hostile_prompt_stays_inert(self, show):
        lm = tiny_lm()
        tab, seen, events = show(seen_by(lm, HOSTILE))
        for position in range(len(seen.ids)):
            tab.locator("#token-list button").nth(position).hover()
        tab.locator("#thumbs button").first.click()
        assert tab.evaluate("document.images.length + document.querySelectorAll('b, i').length") == 0
        assert tab.locator("#text").text_content() == data_of(page(seen, 1, ""))["text"]
        assert len(events) == 1

    def test_a_token_tells_what_the_model_expected_in_its_place(self, show):
        tab, seen, _ = show(seen_by(tiny_lm(), "The dog, the"))
        probabilities, ranks = given_by_the_model(seen)
        for position, use in [(3, "hover"), (1, "hover"), (5, "focus")]:
            getattr(tab.locator("#token-list button").nth(position), use)()
            result = tab.locator("#token-detail").inner_text()
            assert close(share(re.search(r"gave it ([^%]+%)", result)[1]), probabilities[position])
            assert f"rank {ranks[position]} of" in result or (ranks[position] == 1 and "the likeliest" in result)
            assert f"id {seen.ids[position]}\n" in result
            best = likeliest(seen.logits[position - 1], 5)
            shown = bars(tab, "#token-detail")
            for token, probability in zip(best, shares(seen.logits[position - 1], best), strict=True):
                assert close(shown[label(seen, token)], probability)
            assert close(shown[label(seen, seen.ids[position])], probabilities[position])
        tab.locator("#token-list button").first.hover()
        assert "The first token has no predecessor" in tab.locator("#token-detail").inner_text()

    def test_tokens_that_the_model_made_are_marked(self, show):
        seen = seen_by(tiny_lm(), "Hello")
        tab, _, _ = show(seen, prompt_length=len(seen.ids) - 1)
        assert tab.locator("#token-list button.new").count() == 1
        assert tab.locator("#new-tokens").is_visible()

    def test_the_attention_shown_is_the_models_and_its_rows_sum_to_1(self, show):
        tab, seen, _ = show(seen_by(tiny_lm(), "The dog chased it"))
        count = len(seen.ids)
        assert tab.locator("#thumbs button").count() == 3 * 4
        for layer, head in [(0, 0), (2, 3), (1, 2)]:
            weights = seen.values[f"layers.{layer}.attention.weights"][head]
            every = tab.evaluate(f"Array.from({{length: {count}}}, (_, i) => Array.from(row({layer}, {head}, i)))")
            for position, shown in enumerate(every):
                assert sum(shown) == pytest.approx(1, abs=1e-12)
                assert abs(np.asarray(shown) - weights[position, : position + 1]).max() < 0.005
            tab.locator("#thumbs button").nth(head * 3 + layer).click()
            assert tab.locator("#map-title").inner_text() == f"Layer {layer}, head {head}"
            cell, edge = tab.evaluate("[map.cell, map.edge]")
            for query, key in [(count - 1, 2), (3, 3), (4, 0)]:
                place = {"x": edge + (key + 0.5) * cell, "y": edge + (query + 0.5) * cell}
                tab.locator("#map-canvas").hover(position=place)
                reading = tab.locator("#map-reading").inner_text()
                assert f"({query}) attends to" in reading
                assert f"({key}): " in reading
                assert abs(share(reading.rsplit(": ", 1)[1]) - weights[query, key]) < 0.0051
                assert tab.locator("#map-row li").count() == query + 1
                assert sum(bars(tab, "#map-row").values()) == pytest.approx(1, abs=0.003)
                assert tab.locator("#map-sum").inner_text() == "The row sums to 100\u00a0%."
            tab.keyboard.press("Escape")

    def test_a_small_map_tells_where_its_head_looks(self, show):
        tab, seen, _ = show(seen_by(tiny_lm(), "The dog"))
        tab.locator("#thumbs button").nth(4).hover()
        weights = seen.values["layers.1.attention.weights"][1]
        result = re.fullmatch(
            r"Layer 1, head 1: on average a token gives ([\d.]+)\s% to the first token, ([\d.]+)\s% to itself"
            r" and, from the third token on, ([\d.]+)\s% to the one before it\.",
            tab.locator("#thumb-reading").inner_text(),
        )
        expected = [weights[1:, 0].mean(), np.diag(weights)[1:].mean(), np.diag(weights, -1)[1:].mean()]
        shown = [float(number) / 100 for number in result.groups()]
        assert shown == pytest.approx(expected, abs=0.005)

    def test_the_scale_changes_what_is_drawn(self, show):
        tab, _, _ = show(seen_by(tiny_lm(), "The dog"))
        pixels = "document.querySelector('#thumbs canvas').toDataURL()"
        before = tab.evaluate(pixels)
        tab.get_by_label("linear", exact=True).check()
        assert tab.evaluate(pixels) != before
        assert tab.locator("#scale-from").inner_text() == "0\u00a0%"
        tab.get_by_label("logarithmic").check()
        assert tab.evaluate(pixels) == before

    def test_the_first_token_can_be_left_out(self, show):
        tab, seen, _ = show(seen_by(tiny_lm(), "The dog"))
        tab.locator("#skip-first").check()
        expected = without_first_token(seen.values["layers.2.attention.weights"])[1]
        for position in range(len(seen.ids)):
            shown = tab.evaluate(f"Array.from(row(2, 1, {position}))")
            assert shown == pytest.approx(expected[position, : position + 1], abs=0.01)
        assert "to the first token" not in tab.locator("#thumb-reading").inner_text()

    def test_tokens_that_form_a_character_together_are_joined(self, show):
        tab, seen, _ = show(seen_by(tiny_lm(), "a\u00e9\U0001f389b\u202ec"))
        assert tab.locator("#token-list .joined .token").all_text_contents() == ["\u00e9", "\U0001f389", "\\u{202e}"]
        assert tab.locator("#token-list button").count() == len(seen.ids) == 12
        tab.locator("#token-list button").nth(2).focus()
        assert "bytes a9" in tab.locator("#token-detail").inner_text()

    def test_the_keyboard_reaches_everything(self, show):
        tab, seen, _ = show(seen_by(tiny_lm(), "The dog chased"))
        focused = "document.activeElement"
        tab.keyboard.press("Tab")
        assert tab.evaluate(f"{focused}.textContent") == "Skip to the tokens"
        visited = []
        for _ in range(60):
            tab.keyboard.press("Tab")
            outline = tab.evaluate(f"getComputedStyle({focused}).outlineStyle")
            visited.append(
                tab.evaluate(f"{focused}.id || {focused}.parentElement.id || {focused}.closest('section')?.id")
            )
            if tab.evaluate(f"{focused} === document.body"):
                break
            assert outline != "none", visited
        for name in [
            *("token-list", "thumbs", "lens", "norms-chart", "norms-token", "set-temperature", "set-top_k"),
            *("set-top_p", "set-min_p", "set-uniform", "another", "cache-step", "cost-scroll"),
        ]:
            assert name in visited

        tab.locator("#thumbs button[tabindex='0']").focus()
        for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowUp", "End"):
            tab.keyboard.press(key)  # to layer 2 of head 1: ArrowLeft stops at the first layer
        assert tab.evaluate(f"{focused}.getAttribute('aria-label')") == "layer 2, head 1: enlarge"
        tab.keyboard.press("Enter")
        assert tab.evaluate("document.getElementById('map').open")
        assert tab.evaluate(f"{focused}.id") == "map-canvas"
        last = len(seen.ids) - 1
        for key in ("ArrowRight", "ArrowUp", "ArrowRight", "ArrowLeft"):
            tab.keyboard.press(key)
        assert f"({last - 1}) attends to" in tab.locator("#map-reading").inner_text()
        assert "(1): " in tab.locator("#map-reading").inner_text()
        assert "attends to" in tab.evaluate("document.getElementById('map-canvas').getAttribute('aria-label')")
        tab.locator("#head-after").press("Enter")
        assert tab.locator("#map-title").inner_text() == "Layer 2, head 2"
        assert tab.locator("#layer-after").is_disabled()
        tab.keyboard.press("Escape")
        assert not tab.evaluate("document.getElementById('map').open")
        tab.wait_for_function(f"{focused}.getAttribute('aria-label') === 'layer 2, head 2: enlarge'")  # after its event

    def test_the_lens_says_what_pythons_says(self, show):
        tab, seen, _ = show(seen_by(tiny_lm(), "The dog"))
        result, count = lens(seen, range(len(seen.ids)), 5), len(seen.ids)
        for row in range(4):
            for position in range(count):
                cell = tab.locator("#lens-scroll td").nth(row * count + position)
                assert cell.text_content() == label(seen, result.ids[row, position, 0])
                follows = position + 1 < count and result.ids[row, position, 0] == seen.ids[position + 1]
                assert ("is" in (cell.get_attribute("class") or "")) == follows
        for row, position in [(0, 0), (2, 1), (3, count - 1)]:
            tab.locator("#lens-scroll td").nth(row * count + position).hover()
            shown = bars(tab, "#lens-detail")
            for token, probability in zip(result.ids[row, position], result.probabilities[row, position], strict=True):
                assert close(shown[label(seen, token)], probability)
        tab.locator("#lens-scroll td").nth(count).focus()
        tab.keyboard.press("ArrowDown")
        assert "token 0, after block 1" in tab.locator("#lens-detail").inner_text()
        assert close(share(re.search(r"has ([^%]+%)", tab.locator("#lens-detail").inner_text())[1]), result.next[2, 0])

    def test_the_lengths_told_are_the_vectors(self, show):
        tab, seen, _ = show(seen_by(tiny_lm(), "The dog"))
        result = norms(seen)
        tab.locator("#norms-token").fill("1")
        tab.locator("#norms-chart").focus()
        tab.keyboard.press("Home")
        assert f"{result.embedding[1]:.4}"[:5] in tab.locator("#norms-reading").inner_text()
        tab.keyboard.press("ArrowRight")
        numbers = re.findall(r"\d+\.\d+", tab.locator("#norms-reading").inner_text())
        expected = [result.attention[0, 1], result.feedforward[0, 1], result.residual[0, 1]]
        assert [float(number) for number in numbers] == pytest.approx(expected, rel=1e-3)
        assert tab.locator("#norms-chart circle").count() == 3

    @pytest.mark.parametrize(
        ("temperature", "top_k", "top_p", "min_p", "uniform"),
        [
            (1.0, 0, 1.0, 0.0, 0.25),
            (0.0, 40, 0.95, 0.0, 0.5),
            (0.7, 40, 0.9, 0.0, 0.9),
            (2.0, 0, 0.5, 0.1, 0.1),
            (0.3, 3, 1.0, 0.3, 0.6),
            (1.5, 200, 1.0, 0.0, 0.999),
        ],
    )
    def test_the_sliders_do_what_sampling_does(self, show, temperature, top_k, top_p, min_p, uniform):
        tab, seen, _ = show(seen_by(tiny_lm(), "The dog"))
        before = tab.locator("#funnel-table").inner_text()
        places = {
            "temperature": temperature,
            "top_k": tab.locator("#set-top_k").evaluate(
                "(slider, count) => [0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 100, 200].indexOf(count)", top_k
            ),
            "top_p": top_p,
            "min_p": min_p,
            "uniform": uniform,
        }
        for name, place in places.items():
            tab.locator(f"#set-{name}").evaluate(
                "(slider, place) => { slider.value = place; slider.dispatchEvent(new Event('input')); }", place
            )
        assert tab.locator("#funnel-table").inner_text() != before
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        *steps, _ = funnel(seen.logits[-1], **options, uniform=uniform)
        if temperature == 0:
            steps = funnel(seen.logits[-1], **options)
        heads = [head.inner_text() for head in tab.locator("#funnel-table thead th").all()][1:]
        names = {"logits": "all tokens", "top_k": "top-k", "top_p": "top-p", "min_p": "min-p"}
        assert heads == [f"{names.get(step.name, step.name)}\n{step.left} left" for step in steps]
        best = likeliest(seen.logits[-1], 12)
        for row, token in zip(tab.locator("#funnel-table tbody tr").all(), best, strict=False):
            assert row.locator("th").inner_text() == label(seen, token)
            for cell, step in zip(row.locator("td.number").all(), steps, strict=True):
                text = cell.inner_text()
                if step.probabilities[token] == 0:
                    assert text == "–"
                else:
                    assert close(share(text), step.probabilities[token])
        others = tab.locator("#funnel-table tbody tr").last.locator("td.number").last.inner_text()
        expected = 1 - steps[-1].probabilities[best].sum()
        assert others == "–" if steps[-1].left <= 12 else abs(share(others) - expected) < 1e-3
        drawn = int(choose(seen.logits[-1], **options, uniform=uniform))
        assert f"{label(seen, drawn)}" in tab.locator("#drawn").inner_text()
        assert f"“{label(seen, drawn)}” is drawn" in tab.locator("#strip").get_attribute("aria-label")

    def test_every_random_number_falls_on_the_token_that_python_draws(self, show):
        tab, seen, _ = show(seen_by(tiny_lm(), "The dog"))
        options = {"temperature": 1.0, "top_k": 40, "top_p": 0.95}
        drawn = tab.evaluate(
            """() => {
                const last = funnel({ temperature: 1, top_k: 40, top_p: 0.95, min_p: 0 }).at(-1).shares;
                return Array.from({ length: 200 }, (_, i) => draw(last, (i + 0.5) / 200));
            }"""
        )
        expected = [int(choose(seen.logits[-1], **options, uniform=(i + 0.5) / 200)) for i in range(200)]
        assert drawn == expected

    def test_another_random_number_is_another(self, show):
        tab, _, _ = show(seen_by(tiny_lm(), "The dog"))
        result = set()
        for _ in range(5):
            tab.locator("#another").click()
            result.add(tab.locator("#value-uniform").inner_text())
        assert len(result) > 1

    def test_the_cache_grows_step_by_step(self, show):
        tab, seen, _ = show(look(tiny_lm(), [40, 41, 42, 43, 44, 45, 46]), prompt_length=4)
        slider = tab.locator("#cache-step")
        for step in (1, 3, 8):
            slider.fill(str(step))
            rows = [row.inner_text().split("\t") for row in tab.locator("#cache-table tbody tr").all()]
            result = {name.strip(): (with_cache, without) for name, with_cache, without in rows}
            assert result["streams computed in this step"] == ("4" if step == 1 else "1", str(3 + step))
            assert result["streams computed so far"] == (str(3 + step), str(sum(range(4, 4 + step))))
            assert result["the cache holds"][1] == "–"
        tab.locator("#cache-step").focus()
        tab.keyboard.press("ArrowLeft")
        assert tab.locator("#cache-step-value").inner_text() == "7 of 8"
        assert len(seen.ids) == 7

    def test_the_costs_are_those_of_python(self, show):
        tab, seen, _ = show(seen_by(tiny_lm(), "Hello"))
        parts = costs(seen.lm.config, seen.lm.weights, len(seen.ids), scored=1)
        rows = tab.locator("#cost-table tbody tr").all()
        assert len(rows) == len(parts) + 1
        for row, cost in zip(rows, parts, strict=False):
            name, flops, *_ = row.inner_text().split("\t")
            assert name == cost.part
            number, unit = flops.strip().split("\u00a0") if cost.flops else ("0", "FLOP")
            assert float(number) * {"FLOP": 1, "kFLOP": 1e3, "MFLOP": 1e6}[unit] == pytest.approx(cost.flops, rel=6e-3)

    def test_every_part_names_its_figures_and_its_lines_of_the_source(self, show):
        tab, seen, _ = show(seen_by(tiny_lm(), "Hello"))
        for section in tab.locator("section:not(#source)").all():
            assert re.match(r"Figures? 3-\d+.*npllm/[\w/]+\.py:\d+ \w+", section.locator(".where").inner_text())
        items = tab.locator("#flow-chart li").all()
        assert len(items) == len({name.split(".", 2)[-1] if "." in name else name for name in seen.shapes})
        assert all(re.search(r"npllm/\w+\.py:\d+ · Figures? 3-\d", item.inner_text()) for item in items)
        assert tab.locator("a[href^=http]").count() == 0

    def test_a_link_to_the_source_opens_the_file_at_its_line(self, show):
        tab, _, events = show(seen_by(tiny_lm(), "Hello"))
        links = tab.locator(".where a, #flow-chart a").all()
        assert len(links) > 20
        for link in links[:: len(links) // 6]:
            for _ in range(2):  # a second click too, when the address does not change
                tab.evaluate("scrollTo(0, 0)")
                link.click()
                line = tab.locator("#listings .here")
                assert line.is_visible()
                box = line.bounding_box()
                assert 0 < box["y"] < 900
                path, number = line.get_attribute("id").split(":")
                assert link.inner_text() == f"{path}:{number}"
                source = (PACKAGE.parent / path).read_text().splitlines()[int(number) - 1]
                assert line.inner_text().rstrip("\n") == source
        assert len(events) == 1

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize(("width", "zoom"), [(1280, 1), (1280, 2), (1280, 4)])
    def test_the_page_fits_its_window_at_any_zoom(self, show, width, zoom, scheme):
        tab, seen, _ = show(
            seen_by(tiny_lm(), "The dog chased the squirrel " * 4), width=width, zoom=zoom, scheme=scheme
        )
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert tab.evaluate(overflow) == 0
        tab.locator("#thumbs button").first.click()
        assert tab.evaluate(overflow) == 0
        assert tab.evaluate("document.getElementById('map').getBoundingClientRect().right <= innerWidth")
        assert len(seen.ids) > 60

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_all_text_can_be_told_from_its_ground(self, show, scheme):
        tab, _, _ = show(seen_by(tiny_lm(), "The dog chased"), scheme=scheme)
        worst = tab.evaluate(WORST_CONTRAST)
        assert worst[0] >= 4.5, worst

    def test_light_and_dark_follow_the_system_while_the_page_is_open(self, show):
        tab, _, _ = show(seen_by(tiny_lm(), "The dog"))
        drawn = "document.querySelector('#thumbs canvas').toDataURL()"
        ground = "getComputedStyle(document.body).backgroundColor"
        light = tab.evaluate(f"[{ground}, {drawn}]")
        tab.emulate_media(color_scheme="dark")
        tab.wait_for_function(f"light => {ground} !== light[0] && {drawn} !== light[1]", arg=light)

    def test_controls_and_pictures_have_names(self, show):
        tab, _, _ = show(seen_by(tiny_lm(), "The dog"))
        nameless = tab.evaluate(NAMELESS)
        assert nameless == []
        tab.locator("#thumbs button").first.click()
        assert tab.locator("#map-canvas").get_attribute("aria-label").startswith("Attention map of layer 0, head 0")

    @pytest.mark.parametrize("name", [name for name in SECTIONS if name != "source"])
    def test_a_section_on_its_own_is_drawn(self, show, name):
        tab, _, events = show(seen_by(tiny_lm(), "The dog"), only=[name], width=700)
        assert tab.locator("section").count() == 1
        assert tab.locator(".where a").count() == 0
        assert len(tab.locator("section").inner_text()) > 300
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert len(events) == 1

    def test_a_single_map_is_shown_in_place_and_several_as_small_maps(self, show):
        tab, seen, _ = show(seen_by(tiny_lm(), "The dog"), only=["attention"], heads=[(1, 2)])
        assert tab.locator("#map-canvas").is_visible()
        assert "Layer 1, head 2: on average" in tab.locator("#thumb-reading").inner_text()
        weights = seen.values["layers.1.attention.weights"][2]
        assert abs(share(tab.locator("#map-reading").inner_text().rsplit(": ", 1)[1]) - weights[-1, 0]) < 0.0051
        tab, _, _ = show(seen_by(tiny_lm(), "The dog"), only=["attention"], heads=[(1, 2), (0, 2), (2, 1)])
        named = [button.get_attribute("aria-label") for button in tab.locator("#thumbs button").all()]
        assert named == ["layer 2, head 1: enlarge", "layer 0, head 2: enlarge", "layer 1, head 2: enlarge"]
        tab.locator("#thumbs button").nth(1).click()
        assert tab.locator("#map-title").inner_text() == "Layer 0, head 2"
        tab.locator("#layer-after").click()
        assert tab.locator("#map-title").inner_text() == "Layer 1, head 2"
        assert tab.locator("#layer-after").is_disabled()

    def test_other_data_can_be_drawn_in_the_same_page(self, show):
        lm = tiny_lm()
        tab, _, events = show(seen_by(lm, "The dog"))
        other = seen_by(lm, "Hello you")
        data = contents(other, 3, "tiny") | {"vocabulary": labels(lm, range(lm.config.vocab_size))}
        tab.evaluate("other => show(other)", data)
        assert tab.locator("#token-list .token").all_text_contents() == [label(other, i) for i in other.ids]
        assert tab.locator("#lens-scroll td").count() == 4 * len(other.ids)
        assert tab.locator("#thumbs button").count() == 12
        assert tab.locator("#set-temperature").count() == 1
        weights = other.values["layers.2.attention.weights"][3]
        assert abs(tab.evaluate(f"row(2, 3, {len(other.ids) - 1})[0]") - weights[-1, 0]) < 0.0051
        assert len(events) == 1

    def test_a_prompt_of_one_token(self, show):
        tab, seen, events = show(look(tiny_lm(), [40]))
        assert "The first token has no predecessor" in tab.locator("#token-detail").inner_text()
        assert "attends to itself" in tab.locator("#thumb-reading").inner_text()
        tab.locator("#thumbs button").first.click()
        assert share(tab.locator("#map-reading").inner_text().rsplit(": ", 1)[1]) == 1
        assert len(events) == len(seen.ids) == 1

    def test_a_model_without_a_tokenizer_shows_ids(self, show):
        config = tiny_gpt2_config()
        lm = LM(config, random_gpt2_weights(config), None, {}, gpt2_transform)
        tab, _, _ = show(look(lm, [3, 1, 4]))
        assert tab.locator("#token-list button .token").all_text_contents() == ["#3", "#1", "#4"]
        assert tab.locator("#flow-chart li .name").first.inner_text() == "embedding"
        assert "position_embedding" in tab.locator("#flow-chart").inner_text()

    def test_nan_is_shown_and_breaks_nothing(self, show):
        lm = tiny_lm()
        block = lm.weights.layers[1]
        broken = block._replace(qkv_proj=np.full_like(block.qkv_proj, np.nan))
        lm = lm._replace(weights=lm.weights._replace(layers=(lm.weights.layers[0], broken, lm.weights.layers[2])))
        tab, _, events = show(seen_by(lm, "The dog"))
        assert "layers.1.attention.q: " in tab.locator("#not-finite").inner_text()
        assert re.search(r"and \d+ more values", tab.locator("#not-finite").inner_text())
        assert "not all finite" in tab.locator("#drawn").inner_text()
        tab.locator("#thumbs button").nth(1).click()
        assert "not numbers" in tab.locator("#map-sum").inner_text()
        assert len(events) == 1

    @needs_default_model
    def test_the_page_of_64_tokens_of_the_default_model(self, show):
        lm = load()
        ids = lm.tokenizer.encode("The dog chased the squirrel because it was hungry. " * 8)[:64]
        tab, seen, events = show(look(lm, ids))
        assert tab.locator("#thumbs button").count() == 30 * 9
        assert tab.locator("#lens-scroll td").count() == 31 * 64
        sums = tab.evaluate(
            """() => {
                const sums = [];
                for (let map = 0; map < L * N; map++) for (let i = 0; i < T; i++) {
                    sums.push(row(Math.floor(map / N), map % N, i).reduce((a, b) => a + b, 0));
                }
                return [Math.min(...sums), Math.max(...sums)];
            }"""
        )
        assert sums == pytest.approx([1, 1], abs=1e-12)
        assert len(seen.ids) == 64
        assert len(events) == 1
