"""Settings, errors, packages and files named in the docs exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from app import errors
from app.settings import FIELDS
from app.settings.__main__ import GROUPS, page

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "engines/README.md", "models/demo/README.md")),
    *(path for folder in ("docs", "deploy", "loadtest") for path in sorted((ROOT / folder).glob("*.md"))),
]


def test_the_settings_page_is_current():
    assert (DOCS / "configuration.md").read_text() == page(), "run `make docs/configuration.md`"


def test_every_setting_is_in_one_group():
    assert sorted(" ".join(GROUPS.values()).split()) == sorted(FIELDS)


def leaves(tree: type) -> list[type]:
    below = tree.__subclasses__()
    return [leaf for branch in below for leaf in leaves(branch)] if below else [tree]


@pytest.mark.parametrize("error", [*leaves(errors.RequestError), *leaves(errors.ServiceError)])
def test_every_error_over_http_is_listed_with_its_status(error):
    lines = (DOCS / "api.md").read_text().splitlines()
    (row,) = [line for line in lines if f"`{error.code}`" in line and line.startswith("|")]
    assert str(error.status) in row


@pytest.mark.parametrize("path", sorted((ROOT / "app").iterdir()), ids=lambda path: path.name)
def test_every_package_is_listed_in_architecture_md(path):
    if path.name in ("__init__.py", "__pycache__"):
        return
    text = (DOCS / "architecture.md").read_text()
    assert f"`{path.name}{'/' if path.is_dir() else ''}`" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_existing_files(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_site_builds_without_a_broken_link(tmp_path):
    options = ["--fail-on-warning", "--quiet", "-c", "docs", "-b", "dummy"]  # resolves all links and writes nothing
    command = [sys.executable, "-m", "sphinx", *options, ".", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def modules(text: str) -> set[str]:
    return set(re.findall(r"`((?:app|tests)/[\w/]+\.py)`", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_modules_exist(page: Path):
    if page.name == "decisions.md":  # it is dated
        return
    assert [name for name in sorted(modules(page.read_text())) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docker-compose.yml", ROOT / "Dockerfile"], ids=lambda path: path.name)
def test_named_settings_exist(page):
    """deploy/gpu.md recommended YOLOPARD_SHAPES, which the server refuses."""
    if page.name in ("decisions.md", "RESULTS.md"):  # they are dated
        return
    named = set(re.findall(r"\bYOLOPARD_([A-Z_]+)\b", page.read_text())) - {"NAME"}
    assert sorted(name for name in named if name.lower() not in FIELDS) == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
