"""Runs docs/notebooks/looking_inside.ipynb and writes its outputs into it, or checks that they still are what it says.

    python tools/docs/notebook.py            run it and write the outputs
    python tools/docs/notebook.py --check    run it and compare: exit code 1 if a cell fails or prints something else

What a cell shows is kept as text and pictures; as HTML it would be many times as large, and GitHub would not show it.
Outputs of cells with the tag "varies", such as times, are not compared, and pictures neither. Needs nbclient and
ipykernel (the extra docs).
"""

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parent.parent.parent / "docs" / "notebooks" / "looking_inside.ipynb"
KEPT = ("text/plain", "image/png")


def executed(path: Path) -> Any:
    """The notebook after a run of all cells, in the folder of the repository."""
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
    return notebook


def cleaned(notebook: Any) -> dict[str, Any]:
    """The notebook without HTML, times of execution and other traces of the machine that ran it."""
    cells = []
    for cell in notebook.cells:
        kept = {
            "cell_type": cell.cell_type,
            "id": cell.id,
            "metadata": {},
            "source": cell.source.splitlines(keepends=True),
        }
        if cell.metadata.get("tags"):
            kept["metadata"] = {"tags": cell.metadata["tags"]}
        if cell.cell_type == "code":
            kept |= {"execution_count": cell.execution_count, "outputs": [output(one) for one in joined(cell.outputs)]}
        cells.append(kept)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def joined(outputs: list[Any]) -> list[Any]:
    """The outputs, with what was printed in several pieces as one; what went to stderr is left out."""
    result: list[Any] = []
    for one in outputs:
        if one.output_type == "stream" and one.name == "stderr":
            continue
        if one.output_type == "stream" and result and result[-1].output_type == "stream":
            result[-1].text += one.text
        else:
            result.append(one)
    return result


def output(one: Any) -> dict[str, Any]:
    """One output, as text or a picture."""
    if one.output_type == "stream":
        return {"name": "stdout", "output_type": "stream", "text": one.text.splitlines(keepends=True)}
    data = {kind: one.data[kind] for kind in KEPT if kind in one.data}
    if "text/plain" in data:
        data["text/plain"] = data["text/plain"].splitlines(keepends=True)
    counted = {"execution_count": one.execution_count} if one.output_type == "execute_result" else {}
    return {"output_type": one.output_type, "data": data, "metadata": {}} | counted


def texts(cells: list[dict[str, Any]]) -> list[str]:
    """What is compared: the code, and the text that each cell without the tag "varies" shows."""
    lines: list[str] = []
    for cell in cells:
        lines += [line.rstrip("\n") for line in cell["source"]]
        if cell["cell_type"] == "code" and "varies" not in cell["metadata"].get("tags", []):
            for one in cell["outputs"]:
                lines += [line.rstrip("\n") for line in one.get("text", one.get("data", {}).get("text/plain", []))]
    return lines


def main() -> int:
    """Run the notebook; write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    args = parser.parse_args()
    before = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    after = cleaned(executed(NOTEBOOK))
    if not args.check:
        NOTEBOOK.write_text(json.dumps(after, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return 0
    changes = [
        *difflib.unified_diff(texts(before["cells"]), texts(after["cells"]), "committed", "run now", lineterm="")
    ]
    print("\n".join(changes) or "the notebook shows what it says")
    return 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main())
