"""The tree of errors and its picture say the same."""

import re
from collections.abc import Iterator

import pytest

from app import errors
from app.errors import RequestError, ServiceError, SetupError, YolopardError
from app.store import manifest


def tree(parent: type[YolopardError]) -> Iterator[type[YolopardError]]:
    """The classes of app.errors below a class."""
    for child in parent.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from tree(child)


def leaves(parent: type[YolopardError]) -> list[type[YolopardError]]:
    return [cls for cls in tree(parent) if not any(other.__base__ is cls for other in tree(cls))]


def picture() -> dict[str, tuple[str | None, str]]:
    """Class name: (name of its parent, what stands beside it), off the module's docstring."""
    drawn: dict[str, tuple[str | None, str]] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        if found := re.match(r"([│ ├└─]*)([A-Z]\w+) {2,}(\S.*)$", line):
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            drawn[found[2]] = (path[depth - 1] if depth else None, found[3])
    return drawn


CLASSES = [YolopardError, *tree(YolopardError)]


def test_the_picture_shows_every_class_and_no_other():
    assert list(picture()) == [cls.__name__ for cls in CLASSES]
    in_module = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert in_module == set(picture())


@pytest.mark.parametrize("cls", CLASSES)
def test_the_picture_shows_parent_status_and_code(cls):
    parent, beside = picture()[cls.__name__]
    assert cls is YolopardError or cls.__base__.__name__ == parent
    if cls is YolopardError or cls in leaves(RequestError) + leaves(ServiceError):
        assert beside.split() == [str(cls.status), cls.code]


def test_no_two_errors_that_clients_see_share_a_code():
    codes = [cls.code for cls in leaves(RequestError) + leaves(ServiceError)]
    assert len(codes) == len(set(codes)) > 10
    assert not set(codes) & {YolopardError.code, SetupError.code}


@pytest.mark.parametrize("cls", CLASSES)
def test_status_and_code_fit_their_branch(cls):
    assert re.fullmatch(r"[a-z_]+", cls.code)
    assert cls.status in (range(400, 500) if issubclass(cls, RequestError) else range(500, 600))


@pytest.mark.parametrize("cls", leaves(RequestError) + leaves(ServiceError))
def test_a_code_is_its_class_name(cls):
    assert cls.code == re.sub(r"(?<!^)([A-Z])", r"_\1", cls.__name__).lower()


def test_what_stops_a_start_up_is_a_setup_error():
    assert {cls.__base__ for cls in leaves(SetupError)} == {SetupError}
    assert issubclass(manifest.Damaged, SetupError)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_message_is_what_the_user_reads(cls):
    assert str(cls("say what to do")) == "say what to do"
