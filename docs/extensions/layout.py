"""A Sphinx extension: what a page needs to be read in any window and in both color schemes, and live examples."""

import re
from copy import deepcopy
from html import escape
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective


class Example(SphinxDirective):
    """A page that examples.py wrote, in a frame. The content is its caption."""

    required_arguments = 1  # its name
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "title": directives.unchanged_required,  # for those who cannot see it
        "height": directives.nonnegative_int,  # in pixels, until the frame has said how tall it is (npllm.js)
    }

    def run(self) -> list[nodes.Node]:
        address = f"_static/examples/{self.arguments[0]}.html"
        frame = (
            f'<iframe class="example" src="{address}" title="{escape(self.options["title"])}" loading="lazy"'
            f' sandbox="allow-scripts" style="height: {self.options["height"]}px"></iframe>'
        )
        alone = f'<p class="alone"><a href="{address}">This example alone</a></p>'
        caption = self.parse_content_to_nodes()
        return [nodes.raw("", frame, format="html"), *caption, nodes.raw("", alone, format="html")]


class BothSchemes(SphinxTransform):
    """Each figure twice, NAME.svg and NAME.dark.svg. The theme shows one of them, and the browser loads only that."""

    default_priority = 500

    def apply(self, **options: Any) -> None:
        for image in list(self.document.findall(nodes.image)):
            if image["uri"].startswith("figures/"):
                image["loading"] = "lazy"
                dark = deepcopy(image)
                dark["uri"] = image["uri"].replace(".svg", ".dark.svg")
                image["classes"].append("only-light")
                dark["classes"].append("only-dark")
                image.parent.insert(image.parent.index(image) + 1, dark)


class Breaks(SphinxTransform):
    """In tables, names may break between their words: after an underscore, a period, a slash or a colon."""

    default_priority = 500

    def apply(self, **options: Any) -> None:
        for table in self.document.findall(nodes.table):
            for literal in table.findall(nodes.literal):
                first, *rest = re.split(r"(?<=[_./:])(?=[a-zA-Z])", literal.astext())
                if rest:
                    pieces: list[nodes.Node] = [nodes.Text(first)]
                    for piece in rest:
                        pieces += [nodes.raw("", "<wbr>", format="html"), nodes.Text(piece)]
                    literal.children = []
                    literal.extend(pieces)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("example", Example)
    app.add_transform(BothSchemes)
    app.add_transform(Breaks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
