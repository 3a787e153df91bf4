"""A real browser for the tests marked `browser`: headless Chromium driven by Playwright, which never downloads one."""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

# Marks for a test, or for a whole module as `pytestmark`.
in_chromium = [
    pytest.mark.browser,
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="playwright is not installed: pip install playwright"
    ),
    pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium: none of {', '.join(NAMES)} is on the path"),
]


@contextmanager
def chromium() -> Iterator[Any]:
    """The running browser, as a Playwright Browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        try:
            yield browser
        finally:
            browser.close()


# In the page: [contrast, element] of the text that is hardest to tell from its background.
WORST_CONTRAST = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = numbers(colour).map((value) => value / 255)
            .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        for (; element; element = element.parentElement) {
            const colour = getComputedStyle(element).backgroundColor;
            if (numbers(colour)[3] !== 0) return colour;
        }
    };
    let worst = [99, ""];
    for (const element of document.querySelectorAll("body *:not(script, svg, svg *, .strip *)")) {
        const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!says || !element.checkVisibility() || element.disabled) continue;
        const both = [light(getComputedStyle(element).color), light(ground(element))];
        const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
        if (contrast < worst[0]) worst = [contrast, element.outerHTML.slice(0, 200)];
    }
    return worst;
}"""

# In the page: the controls and pictures without a name, which a screen reader could not tell apart.
NAMELESS = """() => [...document.querySelectorAll("button, input, canvas, [role], section, dialog, fieldset, nav")]
    .filter((element) => element.getAttribute("aria-hidden") !== "true" && !(
        element.getAttribute("aria-label") || element.getAttribute("aria-labelledby")
        || element.textContent.trim() || element.labels?.length || element.id === "map-canvas"
        || ["alert", "status"].includes(element.getAttribute("role"))))
    .map((element) => element.outerHTML.slice(0, 100))"""
