"""The KServe statistics of a model."""

from app.api.protocols.kserve.statistics import Statistics
from app.serving.prediction import Prediction, Timings
from app.vision.postprocess import Detections


def image(batch_size: int, infer: float = 0.2, decode: float = 0.01) -> Prediction:
    empty = Detections(*[[]] * 3)
    return Prediction((1, 1), empty, Timings(decode, 0.1, infer, 0.05), batch_size, "fake")


def test_statistics_start_at_zero():
    reported = Statistics().to_json()
    assert (reported["inference_count"], reported["execution_count"], reported["last_inference"]) == (0, 0, 0)
    assert reported["batch_stats"] == []
    assert set(map(str, reported["inference_stats"].values())) == {"{'count': 0, 'ns': 0}"}


def test_the_time_of_a_request_is_that_of_its_slowest_image():
    statistics = Statistics()
    statistics.succeed(0.5, [image(2, decode=0.01), image(2, decode=0.03)])
    statistics.fail(0.25)
    reported = statistics.to_json()["inference_stats"]
    assert reported["success"] == {"count": 1, "ns": 500_000_000}
    assert reported["fail"] == {"count": 1, "ns": 250_000_000}
    assert reported["compute_input"] == {"count": 1, "ns": 30_000_000}
    assert reported["queue"] == {"count": 1, "ns": 100_000_000}


def test_a_shared_batch_counts_by_the_share_of_the_request():
    statistics = Statistics()
    for _ in range(4):
        statistics.succeed(0.5, [image(1)])
    statistics.succeed(0.5, [image(4), image(4)])  # with two images of other requests
    statistics.succeed(0.5, [image(4), image(4), image(4, infer=0.4), image(4)])
    reported = statistics.to_json()
    assert (reported["inference_count"], reported["execution_count"]) == (10, 6)
    one, four = reported["batch_stats"]
    assert (one["batch_size"], one["compute_infer"]) == (1, {"count": 4, "ns": 800_000_000})
    assert (four["batch_size"], four["compute_infer"]["count"]) == (4, 2)
    assert four["compute_infer"]["ns"] == 350_000_000  # 5 * 0.2 s and 0.4 s, each divided by 4
