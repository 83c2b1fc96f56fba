"""Scripts that no other test runs: what they import and use of `app` is there."""

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

SCRIPTS = sorted(path for folder in ("loadtest", "models", "tests/clients") for path in (ROOT / folder).rglob("*.py"))


def imported(tree: ast.AST) -> dict[str, object]:
    """Name in the script: what `from app... import` binds to it. Raises ImportError and AttributeError."""
    found: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "app":
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
                found[name.asname or name.name] = getattr(module, name.name)
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_scripts_take_from_the_app_is_there(path: Path):
    """After modules were moved loadtest/faults.py did not start, and loadtest/int8.py ended with an AttributeError."""
    tree = ast.parse(path.read_text())
    modules = {name: value for name, value in imported(tree).items() if isinstance(value, ModuleType)}
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }
    assert [f"{name}.{attribute}" for name, attribute in sorted(used) if not hasattr(modules[name], attribute)] == []
