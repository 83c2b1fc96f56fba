"""Every series: its name, its labels and its export formats."""

import pytest
from every_metric import used
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from app.errors import NotReady, ServiceError
from app.system.metrics import REFUSALS, STAGES, Engine, Metrics

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
SERIES = {  # name on /metrics: (type, labels); dashboards and alerts rely on them
    "yolopard_requests_total": ("counter", {"model", "engine", "protocol", "code"}),
    "yolopard_request_duration_seconds": ("histogram", {"model", "engine", "protocol"}),
    "yolopard_stage_duration_seconds": ("histogram", {"model", "engine", "stage"}),
    "yolopard_images_total": ("counter", {"model", "engine"}),
    "yolopard_batch_size": ("histogram", {"model", "engine"}),
    "yolopard_batches_total": ("counter", {"model", "engine", "reason"}),
    "yolopard_queue_depth": ("gauge", {"model", "engine"}),
    "yolopard_pending": ("gauge", {"model"}),
    "yolopard_rejected_total": ("counter", {"model", "reason"}),
    "yolopard_device_seconds_total": ("counter", {"model", "engine"}),
    "yolopard_engine_images_per_second": ("gauge", {"model", "engine"}),
    "yolopard_engine_info": ("gauge", {"model", "engine", "backend", "precision", "imgsz", "batch", "device"}),
    "yolopard_gate": ("gauge", {"model", "engine", "figure"}),
    "yolopard_fallback": ("gauge", {"model", "reason"}),
    "yolopard_shadow_boxes_total": ("counter", {"model", "engine", "found_by"}),
    "yolopard_shadow_images_total": ("counter", {"model", "outcome"}),
    "yolopard_ready": ("gauge", set()),
    "yolopard_inflight_bytes": ("gauge", set()),
    "yolopard_inflight_pixels": ("gauge", set()),
    "yolopard_decoders_stuck": ("gauge", set()),
}
ENGINE = Engine("pets", "pets-fp32", "openvino", "fp32", 640, 8, 'cpu "x"\\y')


def scraped(metrics: Metrics, accept: str = "") -> dict[str, object]:
    """Return the metric families of /metrics by name. Counter names end with _total, like on /metrics."""
    parse = parse_openmetrics if accept else parse_text
    families = parse(metrics.render(accept)[0].decode())
    return {family.name + "_total" * (family.type == "counter"): family for family in families}


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_names_types_and_labels_of_the_series_are_stable(accept):
    families = {n: f for n, f in scraped(used(), accept).items() if n.startswith("yolopard_")}
    found = {n: (f.type, set(f.samples[0].labels) - {"le"}) for n, f in families.items()}
    assert found == SERIES


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_created_series_are_not_exported(accept):
    names = {sample.name for family in scraped(used(), accept).values() for sample in family.samples}
    assert not [name for name in names if name.endswith("_created")]


def test_process_and_python_metrics_are_exported_too():
    assert scraped(Metrics()).keys() >= {"process_cpu_seconds_total", "python_info", "python_gc_collections_total"}


def test_the_scraper_gets_the_format_that_it_accepts():
    assert Metrics().render("")[1].startswith("text/plain")
    assert Metrics().render("*/*")[1].startswith("text/plain")
    body, content_type = Metrics().render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_every_series_has_a_help_text():
    assert all(family.documentation for family in scraped(used()).values())


def test_announce_exports_the_info_throughput_and_gate_of_an_engine():
    metrics = Metrics()
    metrics.announce(ENGINE, 123.5, {"agreement": 0.995})
    families = scraped(metrics)
    (info,) = families["yolopard_engine_info"].samples
    assert (info.value, info.labels) == (1, {name: str(getattr(ENGINE, name)) for name in Engine.__slots__})
    (rate,) = families["yolopard_engine_images_per_second"].samples
    assert (rate.value, rate.labels) == (123.5, {"model": "pets", "engine": "pets-fp32"})
    (gate,) = families["yolopard_gate"].samples
    assert (gate.value, gate.labels["figure"]) == (0.995, "agreement")


def test_every_refusal_reason_starts_at_0_so_that_a_rate_counts_the_first_one():
    metrics = Metrics()
    metrics.announce(ENGINE, 1, {})
    counted = {(s.labels["reason"], s.value) for s in scraped(metrics)["yolopard_rejected_total"].samples}
    assert counted == {(reason, 0) for reason in REFUSALS}
    assert all(error.code in REFUSALS for error in ServiceError.__subclasses__() if error is not NotReady)


def test_two_servers_in_one_process_count_separately():
    one, other = Metrics(), Metrics()
    one.images.labels("pets", "a").inc(3)
    assert scraped(one)["yolopard_images_total"].samples[0].value == 3
    assert not scraped(other)["yolopard_images_total"].samples


@pytest.mark.parametrize("seconds", [0.0004, 0.0005, 0.004, 0.07, 2, 30, 100])
def test_a_duration_is_counted_in_every_bucket_whose_bound_is_not_smaller(seconds):
    metrics = Metrics()
    metrics.request_seconds.labels("pets", "a", "native").observe(seconds)
    buckets = [s for s in scraped(metrics)["yolopard_request_duration_seconds"].samples if s.name.endswith("_bucket")]
    bounds = [float(s.labels["le"]) for s in buckets]
    assert bounds == sorted(set(bounds))
    assert bounds[-1] == float("inf")
    assert [s.value for s in buckets] == [float(bound >= seconds) for bound in bounds]


def test_stages_are_in_processing_order():
    assert STAGES == ("decode", "queue", "infer", "postprocess", "encode")
