"""The site as a reader sees it: built with one command, and each page opened in Chromium.

The pages come from a local server.
"""

import functools
import http.server
import importlib.util
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
MISSING = [name for name in ("sphinx", "myst_parser", "furo", "matplotlib") if not importlib.util.find_spec(name)]
pytestmark = [
    *in_chromium,
    needs_default_model,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install -e '.[docs]'"),
]
PAGES = [*sorted(path.stem for path in (ROOT / "docs").glob("*.md")), "search"]
WIDTHS = {"a desktop": 1280, "a desktop at 200 % zoom": 640, "a telephone": 360}

# The number of distinct colours in a sample of each picture's pixels; 0 if it did not load.
COLOURS = """images => images.map(image => {
    if (!image.naturalWidth) return [image.src, 0];
    const canvas = document.createElement("canvas");
    canvas.width = 200; canvas.height = 100;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, 200, 100);
    const pixels = new Uint32Array(context.getImageData(0, 0, 200, 100).data.buffer);
    return [image.src, new Set(pixels).size];
})"""


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
    overflow = {}
    for window, width in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": 700})
        overflow[window] = page.evaluate("document.documentElement.scrollWidth") - width
    result = Opened(
        page.title(),
        messages,
        failed,
        elsewhere,
        page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)"),
        set(page.eval_on_selector_all("[id]", "elements => elements.map(element => element.id)")),
        dict(page.eval_on_selector_all("img", COLOURS)),
        page.eval_on_selector_all("img", "images => images.filter(image => !image.alt).map(image => image.src)"),
        overflow,
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
            ids = opened[file.stem].ids if file.stem in opened else set()
            if not file.is_file() or (anchor and anchor not in ids):
                broken.append(link)
    assert broken == []


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


def test_the_figures_drawn_again_are_the_same_files(site):
    command = [sys.executable, str(tool_path("figures")), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
