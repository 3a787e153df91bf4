"""The site as a reader sees it: built with one command, and each page opened in Chromium.

The pages come from a local server.
"""

import functools
import http.server
import importlib.util
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bridge import tool_path
from chromium import chromium, in_chromium
from default_model import needs_default_model

ROOT = Path(__file__).parent.parent
NEEDED = ("sphinx", "myst_parser", "furo", "sphinx_copybutton", "latex2mathml", "matplotlib")
MISSING = [name for name in NEEDED if not importlib.util.find_spec(name)]
pytestmark = [
    *in_chromium,
    needs_default_model,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install -e '.[docs]'"),
]
PAGES = [*sorted(path.stem for path in (ROOT / "docs").glob("*.md")), "search"]
WIDTHS = {"a desktop": 1280, "a desktop at 200 % zoom": 640, "a telephone": 360}

# The number of distinct colours in a sample of the pixels of each picture that is shown; 0 if it did not load. Pictures
# load when they come into sight.
COLOURS = """async images => {
    const shown = images.filter(image => image.getClientRects().length);
    for (const image of shown) image.loading = "eager";
    await Promise.all(shown.map(image => image.decode().catch(() => null)));
    return shown.map(image => {
        if (!image.naturalWidth) return [image.src, 0];
        const canvas = document.createElement("canvas");
        canvas.width = 200; canvas.height = 100;
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0, 200, 100);
        const pixels = new Uint32Array(context.getImageData(0, 0, 200, 100).data.buffer);
        return [image.src, new Set(pixels).size];
    });
}"""

# Code that is cut off at the right.
CUT_OFF = """blocks => blocks.filter(block => block.scrollWidth > block.clientWidth)
    .map(block => block.innerText.split("\\n").reduce((a, b) => a.length > b.length ? a : b))"""

# What can be scrolled sideways, and does not show it by a shadow.
NO_SHADOW = """elements => elements.filter(element => element.scrollWidth > element.clientWidth
        && ["auto", "scroll"].includes(getComputedStyle(element).overflowX)
        && (getComputedStyle(element).backgroundImage.match(/gradient/g) || []).length < 4)
    .map(element => element.outerHTML.slice(0, 200))"""

# Words in tables that go on in the next line.
BROKEN = """cells => cells.flatMap(cell => {
    const found = [], walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    for (let text = walker.nextNode(); text; text = walker.nextNode()) {
        for (const word of text.data.matchAll(/[\\p{L}\\p{N}]+/gu)) {
            const range = document.createRange();
            range.setStart(text, word.index);
            range.setEnd(text, word.index + word[0].length);
            if (range.getClientRects().length > 1) found.push(word[0]);
        }
    }
    return found;
})"""

# What each copy button of the page copies, and the code beside it.
COPIED = """buttons => {
    const copied = [];
    document.addEventListener("copy", () => copied.push(document.activeElement.value));
    for (const button of buttons) button.click();
    const code = buttons.map(button => document.querySelector(button.dataset.clipboardTarget).innerText);
    return copied.map((text, i) => [code[i], text]);
}"""


class Opened(NamedTuple):
    """What the browser found on a page."""

    title: str
    messages: list[str]  # console errors and warnings, and exceptions
    failed: list[str]  # requests without a response, or with status 400 or above
    elsewhere: list[str]  # requests to another server
    links: list[str]  # absolute URLs
    ids: set[str]  # possible link targets on this page
    pictures: dict[str, int]  # the number of colours in each
    without_text: list[str]  # pictures without alt text
    overflow: dict[str, int]  # how many pixels wider than the window the page is
    cut_off: list[str]  # the longest lines of code that are cut off on a desktop
    without_shadow: dict[str, list[str]]  # what scrolls sideways without showing it
    broken: dict[str, list[str]]  # words in tables that are broken
    copied: list[tuple[str, str]]  # code, and what its button copies
    formulas: list[float]  # the height of each


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address and the folder of the site, freshly built from the sources."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(tool_path("build_docs")), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """An HTTP server that writes no log."""

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def opened(site) -> dict[str, Opened]:
    """Every page, opened once."""
    with chromium() as browser:
        return {name: open_page(browser, site[0], name) for name in PAGES}


def open_page(browser: Any, site: str, name: str) -> Opened:
    """Open a page, wait until the network is idle, and record what the browser found."""
    page = browser.new_page()
    messages, failed, elsewhere = [], [], []
    page.on("console", lambda message: messages.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(f"{site}/") else elsewhere.append(request.url))
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
    page.goto(f"{site}/{name}.html", wait_until="networkidle")
    overflow, without_shadow, broken, cut_off = {}, {}, {}, []
    for window, width in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": 700})
        overflow[window] = page.evaluate("document.documentElement.scrollWidth") - width
        without_shadow[window] = page.eval_on_selector_all("article *", NO_SHADOW)
        broken[window] = page.eval_on_selector_all("article th, article td", BROKEN)
        if width == 1280:
            cut_off = page.eval_on_selector_all(".highlight pre", CUT_OFF)
    pictures = {}
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        pictures |= dict(page.eval_on_selector_all("img", COLOURS))
    result = Opened(
        page.title(),
        messages,
        failed,
        elsewhere,
        page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)"),
        set(page.eval_on_selector_all("[id]", "elements => elements.map(element => element.id)")),
        pictures,
        page.eval_on_selector_all("img", "images => images.filter(image => !image.alt).map(image => image.src)"),
        overflow,
        cut_off,
        without_shadow,
        broken,
        [tuple(pair) for pair in page.eval_on_selector_all("button.copybtn", COPIED)],
        page.eval_on_selector_all("article math", "all => all.map(math => math.getBoundingClientRect().height)"),
    )
    page.close()
    return result


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_without_an_error(opened, name):
    assert "npllm" in opened[name].title
    assert (opened[name].messages, opened[name].failed) == ([], [])


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_nobody_else_for_anything(opened, name):
    assert opened[name].elsewhere == []


@pytest.mark.parametrize("name", PAGES)
def test_every_link_within_the_site_leads_somewhere(opened, site, name):
    (address, folder), broken = site, []
    for link in opened[name].links:
        page, _, anchor = link.partition("#")
        if page.startswith(f"{address}/"):
            file = folder / page.removeprefix(f"{address}/")
            ids = opened[file.stem].ids if file.stem in opened else ids_in(file)
            if not file.is_file() or (anchor and anchor not in ids):
                broken.append(link)
    assert broken == []


@functools.cache
def ids_in(file: Path) -> set[str]:
    """The link targets of a page that was not opened: the source."""
    return set(re.findall(r'id="([^"]+)"', file.read_text(encoding="utf-8"))) if file.is_file() else set()


def test_there_are_links_and_pictures_to_look_at(opened):
    assert sum(len(page.links) for page in opened.values()) > 500
    assert sum(len(page.pictures) for page in opened.values()) > 20


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_is_there_and_not_blank_and_has_a_text(opened, name):
    assert [picture for picture, colours in opened[name].pictures.items() if colours < 10] == []
    assert opened[name].without_text == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("window", WIDTHS)
def test_a_page_is_never_wider_than_the_window(opened, name, window):
    assert opened[name].overflow[window] <= 0


@pytest.mark.parametrize("name", PAGES)
def test_no_code_is_cut_off_on_a_desktop(opened, name):
    assert opened[name].cut_off == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("window", WIDTHS)
def test_words_in_tables_stay_whole_and_what_scrolls_sideways_has_a_shadow(opened, name, window):
    assert opened[name].broken[window] == []
    assert opened[name].without_shadow[window] == []


def test_figures_have_a_drawing_for_each_color_scheme(opened):
    shown = {Path(picture).name for page in opened.values() for picture in page.pictures}
    light = {name for name in shown if not name.endswith(".dark.svg")}
    assert shown - light == {name.replace(".svg", ".dark.svg") for name in light}


@pytest.mark.parametrize("name", PAGES)
def test_what_a_button_copies_can_be_run(opened, name):
    for code, copied in opened[name].copied:
        lines = code.splitlines()
        typed = (
            [line[4:] for line in lines if re.match(r">>> |\.\.\. ", line)] if lines[0].startswith(">>> ") else lines
        )
        if lines[0].startswith("$ "):
            typed = [line[2:] for line in lines if line.startswith("$ ")]
        assert [line for line in copied.splitlines() if line] == [line for line in typed if line]


def test_there_are_buttons_and_formulas(opened):
    assert sum(len(page.copied) for page in opened.values()) > 120
    formulas = [height for page in opened.values() for height in page.formulas]
    assert len(formulas) > 20
    assert min(formulas) > 5


def test_a_page_links_to_each_file_that_it_names(site):
    """And the glossary to the source of each entry."""
    for page in (file for name in PAGES if (file := site[1] / f"{name}.html").is_file()):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r'(?<!">)<code class="[^"]*"><span class="pre">(npllm/[\w/]+\.py)</span>', text):
            raise AssertionError(f"{page.name}: {name} is no link")
    glossary = (site[1] / "glossary.html").read_text(encoding="utf-8").replace("<wbr>", "")
    code = re.findall(r"(<a [^>]*>)?<code[^>]*>(.*?)</code>", glossary)
    assert len(code) > 70
    assert [name for link, name in code if not link] == []


def test_a_live_example_fits_into_its_frame_and_follows_the_color_scheme(site):
    def until(expression: str) -> None:
        """Wait for it in the frame, whose security policy refuses Playwright's own way of waiting."""
        for _ in range(200):
            if frame.evaluate(expression):
                return
            page.wait_for_timeout(25)
        raise AssertionError(f"{frame.url} in {page.url}: expected {expression}")

    shown, root = set(), "document.documentElement"
    with chromium() as browser:
        # A frame has the scheme of its element, unless Playwright sets one for all: "null" is none.
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="null")
        for file in sorted(site[1].glob("*.html")):
            if "<iframe" not in file.read_text(encoding="utf-8"):
                continue
            page.goto(f"{site[0]}/{file.name}")
            for element in page.query_selector_all("iframe"):
                assert element.get_attribute("title")
                element.scroll_into_view_if_needed()
                frame = element.content_frame()
                shown.add(Path(element.get_attribute("src")).stem)
                until(f"{root}.dataset.ready === 'true'")
                for width in (400, 1280):
                    page.set_viewport_size({"width": width, "height": 900})
                    until(f"{root}.scrollHeight <= innerHeight && {root}.scrollWidth <= innerWidth")
                for scheme in ("dark", "light"):
                    page.evaluate("scheme => document.body.dataset.theme = scheme", scheme)
                    until(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
    assert shown == {file.stem for file in (site[1] / "_static" / "examples").glob("*.html")}


def test_the_figures_drawn_again_are_the_same_files(site):
    command = [sys.executable, str(tool_path("figures")), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
