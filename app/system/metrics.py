"""All Prometheus metrics. Names are stable; labels are few and never an id or a URL."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, exposition
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call]  # the _created series are not used

_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
_BATCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)

REFUSALS = (
    *("overloaded", "out_of_memory", "deadline_exceeded", "inference_failed", "work_stuck", "stopping"),
    *("unsupported", "client_gone"),
)
STAGES = ("decode", "queue", "infer", "postprocess", "encode")


@dataclass(frozen=True, slots=True)
class Engine:
    """Labels of `engine_info` for one loaded engine."""

    model: str
    engine: str  # label `engine`, unique among the engines of one model
    backend: str
    precision: str
    imgsz: int
    batch: int
    device: str


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"yolopard_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"yolopard_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"yolopard_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter("requests_total", "Requests answered", "model", "engine", "protocol", "code")
        self.request_seconds = histogram(
            "request_duration_seconds", "Time from first byte to last", _SECONDS, "model", "engine", "protocol"
        )
        self.stage_seconds = histogram("stage_duration_seconds", "Time per image", _SECONDS, "model", "engine", "stage")
        self.images = counter("images_total", "Images inferred; the rate is the FPS", "model", "engine")
        self.batch_size = histogram("batch_size", "Images per batch", _BATCH, "model", "engine")
        self.batches = counter("batches_total", "Batches by why they started", "model", "engine", "reason")
        self.queue_depth = gauge("queue_depth", "Images waiting for an instance of the engine", "model", "engine")
        self.pending = gauge("pending", "Requests admitted and not yet answered", "model")
        self.inflight_bytes = gauge("inflight_bytes", "Bytes of requests in flight; MAX_INFLIGHT_BYTES is the limit")
        self.inflight_pixels = gauge("inflight_pixels", "Pixels of images in flight; MAX_INFLIGHT_PIXELS is the limit")
        self.decoders_stuck = gauge("decoders_stuck", "Image threads over their time limit that still run")
        self.rejected = counter("rejected_total", "Requests refused, failed or canceled", "model", "reason")
        self.device_seconds = counter("device_seconds_total", "Time batches spent in the engine", "model", "engine")
        self.engine_rate = gauge("engine_images_per_second", "Rate of the engine itself at warm-up", "model", "engine")
        self.engine_info = gauge("engine_info", "1 for each loaded engine", *Engine.__slots__)
        self.gate = gauge("gate", "Accuracy report of the gate", "model", "engine", "figure")
        self.fallback = gauge("fallback", "1 while the served engine is not the requested one", "model", "reason")
        self.shadow = counter(
            "shadow_boxes_total",
            "Boxes of shadowed images, by which engine found them: both, only this one, only the second one",
            *("model", "engine", "found_by"),
        )
        self.shadow_images = counter(
            "shadow_images_total",
            "Images for the second engine, by outcome: seen, skipped, failed",
            "model",
            "outcome",
        )
        self.ready = gauge("ready", "1 if the server is ready for images")

    def announce(self, engine: Engine, images_per_second: float, gate: dict[str, float]) -> None:
        """Set the series of an engine that is loaded and warm. `gate`: its accuracy report, value by figure."""
        self.engine_info.labels(*(getattr(engine, label) for label in Engine.__slots__)).set(1)
        self.engine_rate.labels(engine.model, engine.engine).set(images_per_second)
        for reason in REFUSALS:  # start at 0, or `rate` would miss the first ones
            self.rejected.labels(engine.model, reason)
        for figure, value in gate.items():
            self.gate.labels(engine.model, engine.engine, figure).set(value)

    def add(self, collector: Collector) -> None:
        """Add a collector, which is read at every scrape."""
        self._registry.register(collector)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their content type, in a format that the request's header `accept` allows."""
        encode, content_type = exposition.choose_encoder(accept)
        return encode(self._registry), content_type
