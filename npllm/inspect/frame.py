"""Sections of the page of `npllm inspect --html` in a frame, for the output of a notebook's cell.

The page is the frame's `srcdoc`: nothing is loaded, so it works offline, in Jupyter, VS Code and Colab alike. The frame
is sandboxed: its script draws, but reaches neither the notebook, nor its cookies, nor a server. It posts its height; a
script beside the frame, which runs where the notebook is trusted, sets it. Elsewhere the frame scrolls.
"""

from collections.abc import Sequence
from html import escape

from ..errors import UsageError
from ..text.arguments import shown
from .look import Look
from .page import page

USUAL = ("tokens", "attention", "lens")
# Initial heights in pixels, until the frame reports its own: for a short text, 760 pixels wide.
HEIGHTS = {
    "tokens": 460, "attention": 610, "lens": 1310, "norms": 550, "funnel": 1070, "cache": 700, "cost": 880, "flow": 1420
}  # fmt: skip
LARGEST = 2_000_000  # bytes of attention maps in a notebook, which keeps its outputs
LONGEST = 40  # tokens whose logit lens is computed without being asked for: each takes a product with all logits
RESIZE = """<script>
window.npllmFrames ??= addEventListener("message", (event) => {
  const height = Number(event.data?.npllm?.height);
  for (const frame of height > 0 ? document.querySelectorAll("iframe.npllm") : [])
    if (frame.contentWindow === event.source) frame.style.height = `${Math.min(Math.ceil(height), 4000)}px`;
}) ?? true;
</script>"""


class Frame:
    """A page in a frame. A notebook shows it; `html` is the page, to write into a file."""

    def __init__(self, html: str, height: int) -> None:
        self.html, self.height = html, height

    def __repr__(self) -> str:
        return f"Frame({len(self.html):,} characters of HTML, which a notebook shows)"

    def _repr_html_(self) -> str:
        style = f"width:100%;height:{self.height}px;border:0;resize:vertical;overflow:auto"
        source = escape(self.html, quote=True)
        return f'<iframe class="npllm" sandbox="allow-scripts" style="{style}" srcdoc="{source}"></iframe>{RESIZE}'


def frame(seen: Look, only: Sequence[str] = (), head: tuple[int, int] | None = None) -> Frame:
    """These sections of a `Look` as a frame.

    only : names from `contents.SECTIONS`; by default those of USUAL that are small enough for this text
    head : the only (layer, head) whose attention map is shown

    Raises UsageError if there is no such section or head, if the attention maps are too large, and for a model whose
    tokens see later ones.
    """
    if seen.lm.config.bidirectional:
        raise UsageError(
            "show: expected a model whose tokens see only earlier ones; attention(), lens() and next work without it"
        )
    if head is not None and not (isinstance(head, Sequence) and len(head) == 2):
        raise UsageError(f"head: expected (layer, head), got {shown(head)}")
    count, config = len(seen.ids), seen.lm.config
    maps = (1 if head else config.num_hidden_layers * config.num_attention_heads) * count**2 // 2
    if "attention" in only and maps > LARGEST:
        raise UsageError(
            f"attention: expected at most {LARGEST:,} weights in a notebook, got {maps:,}, for {count} tokens; choose"
            " one head with head=(layer, head)"
        )
    fits = {"attention": maps <= LARGEST, "lens": count <= LONGEST}
    usual = [name for name in USUAL if fits.get(name, True)]
    sections = list(only) or (["attention"] if head else usual)
    html = page(seen, count, config.family, sections, None if head is None else [head])
    return Frame(html, sum(HEIGHTS.get(name, 400) for name in sections))
