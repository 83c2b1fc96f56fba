"""The error classes and the diagram in their module's docstring agree."""

import re
import textwrap
from collections.abc import Iterator

import pytest

from app import errors
from app.errors import RequestError, ServiceError, SetupError, YolopardError
from app.store import manifest


def tree(parent: type[YolopardError]) -> Iterator[type[YolopardError]]:
    """Yield the subclasses of `parent` in app.errors."""
    for child in parent.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from tree(child)


def leaves(parent: type[YolopardError]) -> list[type[YolopardError]]:
    return [cls for cls in tree(parent) if not any(other.__base__ is cls for other in tree(cls))]


def diagram() -> dict[str, tuple[str | None, str]]:
    """Return {class name: (name of its parent, text beside it)} from the module's docstring."""
    drawn: dict[str, tuple[str | None, str]] = {}
    path: list[str] = []
    for line in textwrap.dedent(errors.__doc__.partition("::")[2]).splitlines():
        if found := re.match(r"([│ ├└─]*)([A-Z]\w+) {2,}(\S.*)$", line):
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            drawn[found[2]] = (path[depth - 1] if depth else None, found[3])
    return drawn


CLASSES = [YolopardError, *tree(YolopardError)]


def test_the_diagram_shows_exactly_the_classes():
    assert list(diagram()) == [cls.__name__ for cls in CLASSES]
    in_module = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert in_module == set(diagram())


@pytest.mark.parametrize("cls", CLASSES)
def test_the_diagram_shows_parent_status_and_code(cls):
    parent, beside = diagram()[cls.__name__]
    assert cls is YolopardError or cls.__base__.__name__ == parent
    if cls is YolopardError or cls in leaves(RequestError) + leaves(ServiceError):
        assert beside.split() == [str(cls.status), cls.code]


def test_errors_over_http_have_unique_codes():
    codes = [cls.code for cls in leaves(RequestError) + leaves(ServiceError)]
    assert len(codes) == len(set(codes)) > 10
    assert not set(codes) & {YolopardError.code, SetupError.code}


@pytest.mark.parametrize("cls", CLASSES)
def test_status_and_code_fit_their_branch(cls):
    assert re.fullmatch(r"[a-z_]+", cls.code)
    assert cls.status in (range(400, 500) if issubclass(cls, RequestError) else range(500, 600))


@pytest.mark.parametrize("cls", leaves(RequestError) + leaves(ServiceError))
def test_a_code_is_the_class_name_in_snake_case(cls):
    assert cls.code == re.sub(r"(?<!^)([A-Z])", r"_\1", cls.__name__).lower()


def test_errors_that_stop_a_start_are_setup_errors():
    assert {cls.__base__ for cls in leaves(SetupError)} == {SetupError}
    assert issubclass(manifest.Damaged, SetupError)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_message_is_the_given_text(cls):
    assert str(cls("say what to do")) == "say what to do"
