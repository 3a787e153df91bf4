"""A Sphinx extension: what a page needs to be read in any window and in both color schemes."""

import re
from copy import deepcopy
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


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
    app.add_transform(BothSchemes)
    app.add_transform(Breaks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
