"""Take the pictures of README.md: the lab and an attention map, as Chromium shows them, for the default model.

    python tools/docs/pictures.py [DIR]   into DIR (default: docs/pictures)

Needs `pip install -e '.[lab,docs]'` and a Chromium. The files are committed; take them again when the page has changed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import examples
from PIL import Image
from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
MOST_BYTES = 150_000
COLORS = 128  # enough for flat shades and text


def lab(page: Page) -> bytes:
    """The prompt, its answer, and the next token's probabilities without the head that reads the country."""
    command = [sys.executable, "-m", "npllm", "lab", "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            address = next(line for line in server.stderr if "http://" in line).split()[-1]
            page.goto(address)
            page.wait_for_selector("html[data-ready=true]")
            page.fill("#prompt", examples.FRANCE)
            page.click("#run")
            page.wait_for_selector("#status:has-text('One pass')")
            page.fill("#edit-layer", "23")
            page.fill("#edit-index", "4")
            page.click("#edit-form button")
            page.wait_for_selector("#edits li")
            page.wait_for_selector("#next-table th:has-text('change')")
            page.mouse.move(0, 0)
            page.evaluate("document.activeElement.blur()")
            top, bottom = (page.locator(place).bounding_box() for place in ("#bench", "#in-force"))
            height = bottom["y"] + bottom["height"] - top["y"] - 8
            clip = {"x": top["x"] - 24, "y": top["y"] + 8, "width": top["width"] + 48, "height": height}
            return page.screenshot(clip=clip, animations="disabled")
        finally:
            server.terminate()


def attention(page: Page) -> bytes:
    """What that head attends to."""
    with tempfile.TemporaryDirectory() as folder:
        examples.main([folder])
        page.goto(Path(folder, "head.html").as_uri())
        page.wait_for_selector("html[data-ready=true]")
        page.set_viewport_size({"width": 760, "height": 600})
        return page.locator("main").screenshot(animations="disabled")


def small(picture: bytes) -> bytes:
    """The same picture with few colors."""
    file = BytesIO()
    Image.open(BytesIO(picture)).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(
        file, "png", optimize=True
    )
    return file.getvalue()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=FOLDER)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for take in (lab, attention):
            page = browser.new_page(**options)
            picture = small(take(page))
            assert len(picture) < MOST_BYTES, f"{take.__name__}: expected less than {MOST_BYTES}, got {len(picture)}"
            (args.folder / f"{take.__name__}.png").write_bytes(picture)
            page.close()
        browser.close()
    print(f"{args.folder}: 2 pictures")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
