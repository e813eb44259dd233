"""Runs the notebooks of docs/notebooks, and turns them into Markdown for their pages.

`python docs/notebooks.py` runs each from top to bottom in an empty folder, and fails at the first error or warning.
With `--write` it also stores the outputs in the notebooks. What a cell writes to the standard error, such as progress,
is not stored: it differs from run to run.
"""

import argparse
import base64
import html
import io
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

FOLDER = pathlib.Path(__file__).parent / "notebooks"
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_PICTURES = ("image/jpeg", "image/png", "image/svg+xml")
_KEPT = (*_PICTURES, "text/plain")  # kinds of output that are stored, the preferred one first
_LARGE, _LONGEST, _QUALITY = (
    60_000,
    900,
    80,
)  # a PNG of more bytes is stored as JPEG: pixels of its longer side, quality
_SECONDS = 600  # limit of one cell


# Running


def main(argv: Sequence[str] | None = None) -> None:
    """Run the notebooks that are named, or all of them."""
    parser = argparse.ArgumentParser(description="Runs the notebooks of docs/notebooks.")
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebooks")
    parser.add_argument("names", metavar="NAME", nargs="*", help="names without .ipynb (default: all)")
    args = parser.parse_args(argv)
    for path in [FOLDER / f"{name}.ipynb" for name in args.names] or sorted(FOLDER.glob("*.ipynb")):
        began = time.monotonic()
        notebook = run(path)
        if args.write:
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.name}: {time.monotonic() - began:.0f} s", flush=True)


def run(path: pathlib.Path) -> dict[str, Any]:
    """Run a notebook in an empty folder.

    Returns:
      Its content with the new outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised an exception.
      SystemExit: a cell warned.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        # Without the times of the cells, which differ from run to run.
        client = NotebookClient(notebook, timeout=_SECONDS, startup_timeout=_SECONDS, record_timing=False)
        client.extra_arguments = ["--log-level=ERROR"]  # the kernel warns of its own ports
        client.execute(cwd=folder)
    if warnings := [line for line in _standard_error(notebook) if "Warning:" in line]:
        sys.exit(f"{path.name}: a cell warned: {warnings[0]}")
    return _without_what_differs(notebook)


def _standard_error(notebook: Any) -> Iterator[str]:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                yield from output["text"].splitlines()


def _without_what_differs(notebook: Any) -> dict[str, Any]:
    """Return the content of a notebook, without what depends on the machine or the moment."""
    cells = []
    for number, cell in enumerate(notebook.cells):
        kept = {"cell_type": cell.cell_type, "id": f"cell-{number}", "metadata": {}, "source": _lines(cell.source)}
        if cell.cell_type == "code":
            outputs = [_kept(output) for output in cell.outputs if output.get("name") != "stderr"]
            kept |= {"execution_count": cell.execution_count, "outputs": outputs}
        cells.append(kept)
    return {"cells": cells, "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5}


def _kept(output: Any) -> dict[str, Any]:
    """Return an output with the one kind of data that the page shows."""
    if output.output_type == "stream":
        return {"name": output.name, "output_type": "stream", "text": _lines(output.text)}
    kind = next(kind for kind in _KEPT if kind in output.data)
    data, metadata = output.data[kind], output.metadata.get(kind, {})
    if kind == "image/png" and len(base64.b64decode(data)) > _LARGE:
        kind, data = "image/jpeg", _as_jpeg(data)
    kept = {
        "data": {kind: data if kind in ("image/jpeg", "image/png") else _lines(data)},
        "metadata": {kind: {"alt": metadata["alt"]}} if kind in _PICTURES else {},
        "output_type": output.output_type,
    }
    return kept | ({"execution_count": output.execution_count} if "execution_count" in output else {})


def _as_jpeg(png: str) -> str:
    """Convert a picture in Base64 to a smaller one."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((_LONGEST, _LONGEST))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


# Pages


def markdown(notebook: dict[str, Any]) -> str:
    """Return a notebook as Markdown: texts, code, and outputs below the code that made them."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_output(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _block("".join(output["text"]))
    ((kind, data),) = output["data"].items()
    text = "".join(data)
    if kind not in _PICTURES:
        return _block(text)
    encoded = base64.b64encode(text.encode()).decode() if kind == "image/svg+xml" else "".join(text.split())
    alt = html.escape(output["metadata"][kind]["alt"])
    return f'<p class="output"><img alt="{alt}" src="data:{kind};base64,{encoded}"></p>'


def _block(text: str) -> str:
    return f"``` {{.text .output .no-copy}}\n{text.rstrip()}\n```"


if __name__ == "__main__":
    main()
