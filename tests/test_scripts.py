"""Everything that scripts without other tests import from `app` exists."""

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

SCRIPTS = sorted(path for folder in ("loadtest", "models", "tests/clients") for path in (ROOT / folder).rglob("*.py"))


def imported(tree: ast.AST) -> dict[str, object]:
    """Return {name: object} for every `from app... import`. Raises ImportError or AttributeError if one is missing."""
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
def test_everything_that_scripts_use_of_the_app_exists(path: Path):
    """After modules were moved loadtest/faults.py did not start, and loadtest/int8.py ended with an AttributeError."""
    tree = ast.parse(path.read_text())
    modules = {name: value for name, value in imported(tree).items() if isinstance(value, ModuleType)}
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    }
    assert [f"{name}.{attribute}" for name, attribute in sorted(used) if not hasattr(modules[name], attribute)] == []
