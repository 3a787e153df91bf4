"""The page of `npllm lab` in headless Chromium, with the default model."""

import json
import re
import subprocess
import sys
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pytest
from chromium import NAMELESS, WORST_CONTRAST, chromium, in_chromium
from default_model import needs_default_model

import npllm
from npllm import load
from npllm.inspect.lens import likeliest
from npllm.inspect.patch import patch, zero_head

pytestmark = [*in_chromium, needs_default_model]

PROMPT, OTHER = "The capital of France is", "The capital of Italy is"
HOSTILE = (
    "</textarea></script><img src=x onerror=alert(1)> \u05e9\u05dc\u05d5\u05dd \U0001f389 \u202e<b>x</b> {{style}}"
)


class Opened(NamedTuple):
    """The lab in Chromium."""

    tab: Any  # playwright's Page
    events: list[str]  # console messages, exceptions, dialogs, and requests to elsewhere


@pytest.fixture(scope="module")
def lm():
    return load()


@pytest.fixture(scope="module")
def untouched(lm):
    """A function: the model's next-token probabilities after a text."""
    return cache(lambda text: probabilities(lm, text))


@pytest.fixture(scope="module")
def address():
    """The address of `npllm lab`, with its token."""
    command = [sys.executable, "-m", "npllm", "lab", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield next(found[0] for found in (re.search(r"http://\S+", line) for line in process.stderr) if found)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def lab(browser, address):
    """A function that opens the lab in a new window; in the end, nothing must have gone wrong in any of them."""
    opened = []

    def run(fragment="", width=1280, height=900, zoom=1, scheme="light", **options) -> Opened:
        context = browser.new_context(
            viewport={"width": width // zoom, "height": height // zoom},
            device_scale_factor=zoom,
            color_scheme=scheme,
            **options,
        )
        tab, events = context.new_page(), []
        tab.on(
            "request",
            lambda asked: asked.url.startswith(address.partition("?")[0]) or events.append(f"request {asked.url}"),
        )
        tab.on("console", lambda message: events.append(f"console {message.text}"))
        tab.on("pageerror", lambda error: events.append(f"error {error}"))
        tab.on("dialog", lambda dialog: (events.append(f"dialog {dialog.message}"), dialog.dismiss()))
        opened.append((context, events))
        tab.goto(address + fragment)
        tab.wait_for_selector("html[data-ready=true]")
        ready(tab)
        return Opened(tab, events)

    yield run
    for context, events in opened:
        context.close()
        assert events == []


def ready(tab) -> None:
    """Wait until the pass is made."""
    tab.wait_for_selector("#bench[aria-busy='false']")


def press(tab, selector: str) -> None:
    """Click, and wait for the pass."""
    tab.locator(selector).click()
    ready(tab)


def typed(tab, prompt: str) -> None:
    """Type a prompt, and run it."""
    tab.locator("#prompt").fill(prompt)
    tab.keyboard.press("Enter")
    ready(tab)


def share(text: str) -> float:
    """A percentage on the page, as a fraction."""
    return 5e-7 if text.startswith("<") else float(text.removesuffix("%").strip()) / 100


def table(tab) -> dict[str, list[str]]:
    """The numbers of the next tokens, by the tokens."""
    return dict(
        tab.evaluate(
            """() => [...document.querySelectorAll("#next-table tbody tr")].map((row) => [
                row.querySelector("th").innerText.trim(),
                [...row.querySelectorAll("td.number")].map((cell) => cell.innerText)])"""
        )
    )


def probabilities(lm, text: str | list[int], **changes) -> np.ndarray:
    """The model's next-token probabilities after a text, with some values replaced."""
    ids = lm.tokenizer.encode(text) if isinstance(text, str) else text
    options = {"tap": patch(changes["patches"])} if changes else {}
    logits, _ = npllm.forward(np.asarray(ids), lm, **options)
    values = np.exp(logits[-1].astype(np.float64) - logits[-1].max())
    return values / values.sum()


def close(shown: str, expected: float) -> bool:
    """Whether three digits agree."""
    return abs(share(shown) - expected) <= 0.006 * expected + 2e-6


def test_a_prompt_is_typed_and_the_answer_written_token_by_token(lab, lm, untouched):
    tab, _ = lab()
    assert close(table(tab)["␣Paris"][0], untouched(PROMPT)[lm.tokenizer.encode(" Paris")[0]])
    typed(tab, "One, two, three,")
    assert tab.locator("#answer").inner_text() == "One, two, three,"
    expected = likeliest(untouched("One, two, three,"), 10)
    shown = table(tab)
    assert [*shown][:-1] == [lm.tokenizer.decode([token]).replace(" ", "␣") for token in expected]
    assert abs(sum(share(row[0]) for row in shown.values()) - 1) < 0.003

    tab.locator("#most").fill("6")
    press(tab, "#write")
    tab.wait_for_function("() => data.ids.length > 7")
    ready(tab)
    made = npllm.generate(lm, "One, two, three,", max_new_tokens=6)
    assert tab.evaluate("run.ids.slice(run.prompt_length)") == made.ids
    assert tab.locator("#answer .new").inner_text() == made.text

    press(tab, "#back")
    press(tab, "#back")
    assert tab.locator("#answer .ahead").inner_text() == lm.tokenizer.decode(made.ids[-2:])
    before = lm.tokenizer.encode("One, two, three,") + made.ids[:-2]
    best = int(np.argmax(probabilities(lm, before)))
    label = lm.tokenizer.decode([best]).replace(" ", "␣")
    assert close(table(tab)[label][0], probabilities(lm, before)[best])
    press(tab, "#forward")
    press(tab, "#to-prompt")
    press(tab, "#forward")
    assert tab.evaluate("at") == tab.evaluate("run.prompt_length") + 1


def test_a_click_on_another_token_goes_on_from_there(lab, lm):
    tab, _ = lab()
    tab.get_by_role("button", name="␣London", exact=True).first.click()
    ready(tab)
    assert tab.locator("#answer").inner_text() == PROMPT + " London"
    ids = lm.tokenizer.encode(PROMPT) + lm.tokenizer.encode(" London")
    assert tab.evaluate("run.ids") == ids
    best = int(np.argmax(probabilities(lm, ids)))
    assert close(next(iter(table(tab).values()))[0], probabilities(lm, ids)[best])
    # The same from the expectations of an earlier token
    tab.locator("#token-list button").nth(3).focus()
    tab.locator("#token-detail li:not(.is) .choose").first.click()
    ready(tab)
    assert tab.evaluate("[run.ids.length, run.prompt_length]") == [4, 3]


def test_the_sliders_act_on_the_next_token(lab):
    tab, _ = lab()
    assert tab.locator("#forward").inner_text() == "next token: ␣Paris ›"
    for name, value in [("temperature", 1), ("uniform", 0.01)]:
        tab.locator(f"#set-{name}").evaluate(
            "(slider, to) => { slider.value = to; slider.dispatchEvent(new Event('input')); }", value
        )
    drawn = re.search(r"falls on (\S+), which", tab.locator("#drawn").inner_text())[1]
    assert drawn != "␣Paris"
    assert tab.locator("#forward").inner_text() == f"next token: {drawn} ›"
    press(tab, "#forward")
    assert tab.locator("#answer").inner_text() == PROMPT + drawn.replace("␣", " ")


def test_a_head_switched_off_gives_npllms_probabilities_and_the_link_restores_them(lab, lm, untouched):
    tab, _ = lab()
    for name, value in [("layer", 5), ("index", 3)]:
        tab.locator(f"#edit-{name}").fill(str(value))
    press(tab, "#edit-form button")
    assert tab.locator("#edits li").all_inner_texts() == ["head 5.3: off remove"]
    expected = probabilities(lm, PROMPT, patches={"layers.5.attention.mixed": zero_head(3)})
    before_it = untouched(PROMPT)
    for label, (now, before, change) in [*table(tab).items()][:-1]:
        (token,) = lm.tokenizer.encode(label.replace("␣", " "))
        assert close(now, expected[token])
        assert close(before, before_it[token])
        points = 100 * (expected[token] - before_it[token])
        assert float(change.replace("−", "-").replace("±", "")) == pytest.approx(points, abs=0.06)

    tab.locator("#edit-part").select_option("feedforward")
    tab.locator("#edit-scale").fill("0.5")
    press(tab, "#edit-form button")
    assert tab.locator("#edits li").count() == 2
    both = {"layers.5.attention.mixed": zero_head(3), "layers.5.feedforward.output": lambda value: 0.5 * value}
    (paris,) = lm.tokenizer.encode(" Paris")
    assert close(table(tab)["␣Paris"][0], probabilities(lm, PROMPT, patches=both)[paris])

    fragment = tab.url[tab.url.index("#") :]
    state = json.loads(unquote(fragment[1:]))
    assert [one["part"] for one in state["edits"]] == ["head", "feedforward"]
    again, _ = lab(fragment)
    assert table(again) == table(tab)
    assert again.locator("#edits li").count() == 2
    press(again, "#edits li:first-child button")
    assert again.locator("#edits li").all_inner_texts() == ["feedforward network 5: times 0.5 remove"]
    press(again, "#remove-all")
    assert close(table(again)["␣Paris"][0], before_it[paris])


def test_a_change_while_another_is_computed_keeps_both(lab):
    tab, _ = lab()
    tab.evaluate(
        """() => {
            for (const layer of [4, 5]) {
                byId("edit-layer").value = layer;
                byId("edit-form").requestSubmit();
            }
        }"""
    )
    ready(tab)
    assert tab.locator("#edits li").all_inner_texts() == ["head 4.0: off remove", "head 5.0: off remove"]
    again, _ = lab(tab.url[tab.url.index("#") :])
    assert again.locator("#edits li").count() == 2
    assert table(again) == table(tab)

    tab.locator("#prompt").fill(OTHER)
    tab.evaluate("() => { for (const _ of [1, 2]) byId('prompt-form').requestSubmit(); step(1); write(); take(0); }")
    ready(tab)
    assert tab.locator("#answer").inner_text() == OTHER
    assert json.loads(unquote(tab.url[tab.url.index("#") + 1 :]))["prompt"] == OTHER
    assert tab.locator("#edits li").count() == 2


def test_an_answer_written_from_inside_the_prompt_replaces_its_rest(lab, lm):
    tab, _ = lab("#" + json.dumps({"prompt": PROMPT, "at": 3}))
    tab.locator("#most").fill("4")
    press(tab, "#write")
    tab.wait_for_function("() => data.ids.length === 7")
    ready(tab)
    kept = lm.tokenizer.encode(PROMPT)[:3]
    assert tab.evaluate("run.ids") == kept + npllm.generate(lm, kept, max_new_tokens=4).ids
    assert tab.evaluate("[run.prompt_length, at]") == [3, 7]
    assert tab.locator("#bench-problem").inner_text() == ""
    tab.evaluate("() => { model.most_tokens = 8; }")
    press(tab, "#write")
    tab.wait_for_function("() => data.ids.length === 8")
    ready(tab)
    press(tab, "#write")
    assert tab.locator("#status").inner_text() == "The text has reached the lab's limit of 8 tokens."


def test_two_prompts_side_by_side_and_a_vector_of_one_in_the_other(lab, lm, untouched):
    tab, _ = lab()
    tab.locator("#second-prompt").fill(OTHER)
    press(tab, "#second-form button[type=submit]")
    (paris,), (rome,) = (lm.tokenizer.encode(name) for name in (" Paris", " Rome"))
    shown = table(tab)
    assert close(shown["␣Paris"][1], untouched(OTHER)[paris])
    assert close(shown["␣Rome"][1], untouched(OTHER)[rome])
    assert close(shown["␣Rome"][0], untouched(PROMPT)[rome])

    tab.locator("#patching-form button[type=submit]").click()
    tab.wait_for_function(f"() => data.patched?.rows.length === {lm.config.num_hidden_layers}")
    cells = tab.locator("#patching-scroll td")
    assert cells.count() == 5 * lm.config.num_hidden_layers
    assert float(cells.nth(3).inner_text()) == pytest.approx(1, abs=0.2)  # at France, after the first block
    assert float(cells.nth(0).inner_text()) == 0
    assert float(cells.last.inner_text()) == pytest.approx(1, abs=0.01)  # at the end, after the last block
    cells.nth(3).click()
    ready(tab)
    assert tab.locator("#edits li").count() == 1
    assert share(table(tab)["␣Rome"][0]) == pytest.approx(untouched(OTHER)[rome], rel=0.3)
    assert tab.locator("#patching-scroll td").count() == 5 * lm.config.num_hidden_layers  # the grid stays
    press(tab, "#second-clear")
    assert tab.locator("#in-force").is_hidden()


def test_heads_are_ranked_and_their_maps_open(lab, lm):
    tab, _ = lab()
    tab.locator("#heads").scroll_into_view_if_needed()
    tab.wait_for_selector("#heads-list li")
    assert "repeated" in tab.locator("#kind-words").inner_text()
    assert "induction" in tab.locator("#heads-list li").first.inner_text()
    scores = [float(text) for text in tab.locator("#heads-list .share").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    tab.get_by_label("first-token sink").check()
    assert float(tab.locator("#heads-list .share").first.inner_text()) > 0.9
    tab.locator("#heads-list button").first.click()
    tab.wait_for_selector("#map[open]")
    assert re.match(r"Layer \d+, head \d", tab.locator("#map-title").inner_text())
    tab.keyboard.press("Escape")
    tab.locator("#attention").scroll_into_view_if_needed()
    tab.wait_for_selector("#thumbs button")
    assert tab.locator("#thumbs button").count() == 270
    tab.locator("#skip-first").check()
    tab.wait_for_timeout(100)
    tab.locator("#thumbs button").nth(5 + 3 * 30).click()
    tab.wait_for_selector("#map[open]")
    values: dict[str, Any] = {}
    npllm.forward(np.asarray(lm.tokenizer.encode(PROMPT)), lm, tap=npllm.record(values, "layers.5.attention.weights"))
    row = values["layers.5.attention.weights"][3][-1][1:]
    shown = [share(text) for text in tab.locator("#map-row .share").all_inner_texts()]
    assert shown == pytest.approx([0, *(row / row.sum())], abs=1e-3)
    tab.get_by_role("button", name="switch this head off").click()
    ready(tab)
    assert tab.locator("#edits li").all_inner_texts() == ["head 5.3: off remove"]


def test_the_parts_that_said_it_sum_to_the_logit_and_can_be_switched_off(lab, lm, untouched):
    tab, _ = lab()
    tab.wait_for_selector("#attribution-list li", state="attached")
    logits, _ = npllm.forward(np.asarray(lm.tokenizer.encode(PROMPT)), lm)
    (paris,) = lm.tokenizer.encode(" Paris")
    shown = re.search(r"Its logit is ([\d.]+)", tab.locator("#attribution-sum").inner_text())[1]
    assert float(shown) == pytest.approx(float(logits[-1, paris]), abs=0.006)
    assert tab.evaluate("partsOf(data.attributed).reduce((sum, { value }) => sum + value, 0)") == pytest.approx(
        float(logits[-1, paris]), abs=1e-3
    )
    assert tab.locator("#attribution-grid button").count() == 10 * 30
    idea = tab.locator("#ideas button").first
    assert "Switch off the head that adds most to ␣Paris" in idea.inner_text()
    layer, head = map(int, re.search(r"\((\d+)\.(\d+)\)", idea.inner_text()).groups())
    idea.click()
    tab.wait_for_selector("#edits li")
    ready(tab)
    expected = probabilities(lm, PROMPT, patches={f"layers.{layer}.attention.mixed": zero_head(head)})[paris]
    assert close(table(tab)["␣Paris"][0], expected)
    assert expected < untouched(PROMPT)[paris]


def test_errors_are_shown_in_place_and_change_nothing(lab):
    tab, events = lab()
    shown = table(tab)
    tab.locator("#edit-layer").evaluate("input => { input.removeAttribute('max'); input.value = 99; }")
    press(tab, "#edit-form button")
    assert "expected 0 to 29" in tab.locator("#changes-problem").inner_text()
    assert tab.locator("#edits li").count() == 0
    typed(tab, "")
    assert tab.locator("#bench-problem").inner_text() != ""
    assert table(tab) == shown
    tab.locator("#patching-form button[type=submit]").click()
    tab.wait_for_function("() => byId('second-problem').textContent.includes('second prompt')")
    typed(tab, PROMPT)
    assert tab.locator("#bench-problem").inner_text() == ""
    assert all("status of 400" in event for event in events)  # the browser reports those itself
    events.clear()


def test_hostile_text_stays_inert_and_characters_of_several_tokens_are_whole(lab):
    tab, _ = lab()
    tab.locator("#prompt").fill(HOSTILE)
    press(tab, "#run")
    shown = tab.locator("#answer").text_content()
    assert shown == HOSTILE.replace("\u202e", "\\u{202e}")
    assert tab.evaluate("document.images.length + document.querySelectorAll('b, i').length") == 0
    assert "\U0001f389" in "".join(tab.locator("#token-list .joined .token").all_inner_texts())
    again, _ = lab(tab.url[tab.url.index("#") :])
    assert again.locator("#answer").text_content() == shown
    assert again.locator("#prompt").input_value() == HOSTILE


def test_a_link_that_is_no_state_is_ignored(lab):
    tab, _ = lab("#%7Bnonsense")
    assert tab.locator("#answer").inner_text() == PROMPT


def test_a_link_that_does_not_fit_the_model_is_refused_in_words(lab):
    tab, events = lab("#" + json.dumps({"prompt": "Hello", "edits": [{"part": "head", "layer": 99, "index": 0}]}))
    assert re.match("The link cannot be restored: .*expected 0 to 29", tab.locator("#bench-problem").inner_text())
    assert tab.locator("#answer").inner_text() == PROMPT
    assert tab.locator("#edits li").count() == 0
    assert "status of 400" in events.pop()


def test_another_click_ends_the_answer_that_is_being_written(lab):
    tab, _ = lab()
    typed(tab, "Once upon a time")
    tab.locator("#most").fill("300")
    tab.locator("#write").click()
    tab.wait_for_function("() => byId('answer').querySelector('.new')?.textContent.length > 8")
    tab.locator("#stop").click()
    tab.wait_for_function("() => data.ids.length > 5")
    ready(tab)
    written = tab.locator("#answer .new").inner_text()
    assert 0 < tab.evaluate("run.ids.length - run.prompt_length") < 300
    tab.locator("#write").click()
    tab.wait_for_function("() => byId('status').textContent.startsWith('Tokens')")
    typed(tab, PROMPT)
    assert tab.locator("#answer").inner_text() == PROMPT
    tab.wait_for_timeout(300)
    assert tab.locator("#answer").inner_text() == PROMPT
    assert tab.locator("#stop").is_hidden()
    assert written


def test_everything_works_by_keyboard(lab):
    tab, _ = lab()
    focused = "document.activeElement"
    for part in ("heads", "attention"):  # computed when they are looked at
        tab.locator(f"#{part}").scroll_into_view_if_needed()
        tab.wait_for_selector(f"#{part} .thumbs button")
    tab.locator("#prompt").focus()
    tab.keyboard.press("Control+A")
    tab.keyboard.type("The capital of Italy is")
    tab.keyboard.press("Enter")
    ready(tab)
    assert tab.locator("#answer").inner_text() == "The capital of Italy is"
    visited = []
    for _ in range(160):
        tab.keyboard.press("Tab")
        if tab.evaluate(f"{focused} === document.body"):
            break
        visited.append(tab.evaluate(f"{focused}.id || {focused}.closest('[id]').id"))
        outline = tab.evaluate(f"getComputedStyle({focused}).outlineStyle")
        assert outline != "none", visited
    for name in [
        *("run", "back", "forward", "write", "most", "ideas", "next-table", "next-more", "copy-link", "edit-part"),
        *(
            "edit-layer",
            "edit-index",
            "edit-scale",
            "heads-grid",
            "heads-list",
            "attribution-choice",
            "attribution-grid",
        ),
        *(
            "attribution-grid",
            "second-prompt",
            "patching-part",
            "set-temperature",
            "token-list",
            "thumbs",
            "norms-token",
        ),
    ]:
        assert name in visited, name
    tab.locator("#heads-grid button[tabindex='0']").focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#map[open]")
    assert tab.locator("#map-title").inner_text() == "Layer 1, head 0"
    tab.keyboard.press("Escape")
    assert tab.evaluate(f"{focused}.closest('#heads-grid') !== null")


@pytest.mark.parametrize(
    ("width", "zoom", "scheme"), [(1280, 1, "light"), (400, 1, "dark"), (1280, 2, "light")], ids=str
)
def test_the_page_fits_its_window_and_can_be_read(lab, width, zoom, scheme):
    state = {
        "prompt": PROMPT,
        "edits": [{"part": "head", "layer": 23, "index": 4, "scale": 0}],
        "other": {"prompt": OTHER, "chat": False},
    }
    tab, _ = lab("#" + json.dumps(state), width=width, zoom=zoom, scheme=scheme, reduced_motion="reduce")
    for part in ("heads", "attribution", "attention", "lens"):
        tab.locator(f"#{part}").scroll_into_view_if_needed()
    tab.wait_for_selector("#lens-scroll td")
    tab.wait_for_selector("#thumbs button")
    tab.wait_for_selector("#heads-list li")
    tab.wait_for_selector("#attribution-list li")
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert tab.evaluate(NAMELESS) == []
    worst = tab.evaluate(WORST_CONTRAST)
    assert worst[0] >= 4.5, worst


def test_a_text_of_300_tokens_stays_usable(lab, lm):
    ids = lm.tokenizer.encode("The dog chased the squirrel because it was hungry. " * 40)[:300]
    tab, _ = lab("#" + json.dumps({"prompt": "", "ids": ids}))
    tab.locator("#attention").scroll_into_view_if_needed()
    tab.wait_for_selector("#thumbs canvas")
    assert tab.locator("#thumbs canvas").first.get_attribute("width") == "32"
    tab.locator("#thumbs button").nth(1).click()
    tab.wait_for_selector("#map[open]")
    assert tab.locator("#map-row li").count() == 300
    assert tab.locator("#map-sum").inner_text() == "The row sums to 100\u00a0%."
    tab.keyboard.press("Escape")
    start = tab.evaluate("performance.now()")
    press(tab, "#back")
    assert tab.evaluate("performance.now()") - start < 3000
