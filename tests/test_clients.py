"""Existing clients with the demo model: the checks of the README's table."""

import pytest
from clients import deepstack, hub, kserve, perf_analyzer, roboflow, same
from conftest import free_port, serve_demo

CHECKS = [check for family in (hub, deepstack, roboflow) for check in family.CHECKS]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check[0]} {check[2]}")
def test_a_client_of_the_table_gets_the_boxes_of_the_native_api(demo, check):
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
def test_clients_of_triton_and_ultralytics_get_the_boxes_of_the_native_api(with_grpc, check):
    assert check[3](with_grpc)


@pytest.mark.parametrize("check", perf_analyzer.CHECKS, ids=lambda check: f"{check[0]} {check[2]}")
def test_perf_analyzer_reports_the_statistics_of_the_server(with_grpc, check):
    if not perf_analyzer.can_run():
        pytest.skip("`make clients` has not been run, or Debian's libb64-0d is not installed")
    assert check[3](with_grpc)


def test_the_perf_analyzer_check_fails_if_counts_differ_or_a_statistic_is_missing():
    output = """
    Request count: 20
    Inference count: 80
    Successful request count: 20
    Avg request latency: 9 usec (overhead 1 usec + queue 0 usec + compute input 3 usec + compute infer 5 usec)
    """
    assert perf_analyzer.reported(output)
    for wrong in (
        "",
        output.replace("request count: 20", "request count: 9"),
        output.replace("infer 5", "infer 0"),
    ):
        with pytest.raises(AssertionError):
            perf_analyzer.reported(wrong)


def test_a_check_fails_if_boxes_differ_or_are_missing():
    boxes = [("cat", [0, 0, 10, 10]), ("dog", [5, 5, 9, 9])]
    assert same(boxes, boxes, 0)
    for wrong in (boxes[:1], boxes[::-1], [boxes[0], ("dog", [5, 5, 9, 12])]):
        with pytest.raises(AssertionError):
            same(wrong, boxes, 2)
