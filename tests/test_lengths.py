"""Files and functions of app/ stay short."""

import ast

from conftest import ROOT

FILES = sorted((ROOT / "app").rglob("*.py"))
FUNCTIONS = {
    f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
    for path in FILES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
}


def test_no_file_has_more_than_300_lines():
    assert [str(path) for path in FILES if len(path.read_text().splitlines()) > 300] == []


def test_no_function_has_more_than_50_lines():
    assert {name: lines for name, lines in FUNCTIONS.items() if lines > 50} == {}


def test_nine_of_ten_functions_have_at_most_17_lines():
    longer = sum(lines > 17 for lines in FUNCTIONS.values())
    assert longer <= len(FUNCTIONS) / 10
