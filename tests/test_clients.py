"""Clients that people have, against the demo model on a server with keys: what the README's table says."""

import pytest
from clients import KEY, deepstack, hub, roboflow, same
from conftest import serve_demo

SENDS_NO_KEY = deepstack.codeproject
FAMILIES = (hub, deepstack, roboflow)
CHECKS = [check for family in FAMILIES for check in family.CHECKS]


@pytest.fixture(scope="module")
def url(build):
    live = serve_demo(build().folder.parent, api_keys=(KEY,))
    yield live.url
    live.stop()


@pytest.mark.parametrize(
    ("client", "version", "call", "run"), CHECKS, ids=lambda part: part if isinstance(part, str) else ""
)
def test_a_client_of_the_table_finds_what_the_native_api_finds(url, demo, client, version, call, run):
    if (client, version) in {check[:2] for check in roboflow.CHECKS} and not roboflow.PYTHON.exists():
        pytest.skip("`make clients` has not been run")
    assert run(demo.url if run is SENDS_NO_KEY else url)


def test_a_check_fails_where_boxes_differ_or_are_missing():
    boxes = [("cat", [0, 0, 10, 10]), ("dog", [5, 5, 9, 9])]
    assert same(boxes, boxes, 0)
    for wrong in (boxes[:1], boxes[::-1], [boxes[0], ("dog", [5, 5, 9, 12])]):
        with pytest.raises(AssertionError):
            same(wrong, boxes, 2)
