"""The source files of the package, and the modules that each of them imports."""

import ast
import pathlib

from tests.conftest import ROOT

FILES = sorted(p for room in ("histojax", "data_pipelines", "configs") for p in (ROOT / room).rglob("*.py"))


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: pathlib.Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from histojax import models` imports the room, not the package around it.
            found |= names if node.module in ("histojax", "data_pipelines") else {str(node.module)}
    return found
