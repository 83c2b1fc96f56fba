"""What the README says of settings, errors and modules is what the code has."""

import re
from pathlib import Path

import pytest

from app import errors
from app.settings import FIELDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_listed_with_its_default_and_description(name):
    field = FIELDS[name]
    row = re.search(rf"^\| `{name.upper()}` \| (.*) \| (.*) \|$", README, re.MULTILINE)
    assert row is not None
    listed = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    default = "" if listed is None else str(listed).removeprefix(f"{ROOT}/")
    assert row[1].lower() == default.lower()
    assert row[2] == field.description


def leaves(tree: type) -> list[type]:
    below = tree.__subclasses__()
    return [leaf for branch in below for leaf in leaves(branch)] if below else [tree]


@pytest.mark.parametrize("error", [*leaves(errors.RequestError), *leaves(errors.ServiceError)])
def test_every_error_over_http_is_listed_with_its_status(error):
    (row,) = [line for line in README.splitlines() if f"`{error.code}`" in line and line.startswith("|")]
    assert str(error.status) in row


@pytest.mark.parametrize(
    "path", sorted((ROOT / "app").glob("*.py")) + sorted((ROOT / "app").glob("*/")), ids=lambda path: path.name
)
def test_every_module_has_its_line(path):
    if path.name in ("__init__.py", "__pycache__"):
        return
    assert f"`{path.name}{'/' if path.is_dir() else ''}`" in README


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "docs/kserve.md", "docs/fuzz.md", "deploy/README.md", "deploy/gpu.md"),
        *("models/demo/README.md", "engines/README.md"),
    ],
)
def test_links_lead_to_files(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
