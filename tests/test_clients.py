"""Clients that people have, against the demo model: what the README's table says."""

import pytest
from clients import deepstack, hub, kserve, perf_analyzer, roboflow, same
from conftest import free_port, serve_demo

CHECKS = [check for family in (hub, deepstack, roboflow) for check in family.CHECKS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check[0]} {check[2]}")
def test_a_client_of_the_table_finds_what_the_native_api_finds(demo, check):
    if check in roboflow.CHECKS and not roboflow.PYTHON.exists():
        pytest.skip("`make clients` has not been run")
    *_, run = check
    assert run(demo.url)


@pytest.fixture(scope="module")
def with_grpc(build):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kserve, "GRPC_PORT", free_port())
        live = serve_demo(build().folder.parent, grpc_port=kserve.GRPC_PORT)
        yield live.url
        live.stop()


@pytest.mark.parametrize("check", kserve.CHECKS, ids=lambda check: f"{check[0]} {check[2]}")
def test_triton_s_clients_and_ultralytics_find_it_too(with_grpc, check):
    assert check[3](with_grpc)


@pytest.mark.parametrize("check", perf_analyzer.CHECKS, ids=lambda check: f"{check[0]} {check[2]}")
def test_perf_analyzer_measures_with_the_server_s_own_statistics(with_grpc, check):
    if not perf_analyzer.can_run():
        pytest.skip("`make clients` has not been run, or Debian's libb64-0d is not installed")
    assert check[3](with_grpc)


def test_a_check_of_perf_analyzer_fails_where_the_counts_differ_or_nothing_is_told():
    reported = """
    Request count: 20
    Inference count: 80
    Successful request count: 20
    Avg request latency: 9 usec (overhead 1 usec + queue 0 usec + compute input 3 usec + compute infer 5 usec)
    """
    assert perf_analyzer.reported(reported)
    for wrong in (
        "",
        reported.replace("request count: 20", "request count: 9"),
        reported.replace("infer 5", "infer 0"),
    ):
        with pytest.raises(AssertionError):
            perf_analyzer.reported(wrong)


def test_a_check_fails_where_boxes_differ_or_are_missing():
    boxes = [("cat", [0, 0, 10, 10]), ("dog", [5, 5, 9, 9])]
    assert same(boxes, boxes, 0)
    for wrong in (boxes[:1], boxes[::-1], [boxes[0], ("dog", [5, 5, 9, 12])]):
        with pytest.raises(AssertionError):
            same(wrong, boxes, 2)
