"""The budget of bytes and pixels in flight."""

import threading

import pytest

from app.errors import BodyTooLarge, Overloaded, TooManyPixels
from app.serving import inflight
from app.serving.inflight import MIB, Inflight
from app.system import host


@pytest.fixture
def budget() -> Inflight:
    return Inflight(1000, 100)


def test_held_bytes_and_pixels_are_counted_and_released(budget):
    with budget.share() as share, budget.share() as other:
        share.add_bytes(600)
        other.add_bytes(400)
        share.add_pixels(100)
        assert (budget.bytes, budget.pixels) == (1000, 100)
    assert (budget.bytes, budget.pixels) == (0, 0)


def test_a_request_over_the_free_budget_is_overloaded_and_changes_nothing(budget):
    with budget.share() as share, budget.share() as other:
        share.add_bytes(600)
        share.add_pixels(60)
        with pytest.raises(Overloaded):
            other.add_bytes(500)
        with pytest.raises(Overloaded):
            other.add_pixels(50)
        assert (budget.bytes, budget.pixels) == (600, 60)


def test_a_request_over_the_whole_budget_is_too_large(budget):
    with budget.share() as share:
        with pytest.raises(BodyTooLarge, match="MAX_INFLIGHT_BYTES=1000"):
            share.add_bytes(1001)
        with pytest.raises(TooManyPixels, match="MAX_INFLIGHT_PIXELS=100"):
            share.add_pixels(101)


def test_hold_only_replaces_the_bytes_of_a_request_with_those_of_its_answer(budget):
    with budget.share() as share:
        share.add_bytes(900)
        share.hold_only(50)
        assert budget.bytes == 50


def test_a_slow_upload_loses_its_memory_to_another_request(budget, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(inflight, "monotonic", lambda: now[0])
    evicted = []
    slow, quick = budget.share(), budget.share()
    slow.begin_waiting(lambda: evicted.append("slow"))
    slow.add_bytes(900)
    now[0] += inflight.EVICT_AFTER_S / 2
    with pytest.raises(Overloaded):
        quick.add_bytes(500)
    now[0] += inflight.EVICT_AFTER_S
    quick.add_bytes(500)
    assert evicted == ["slow"]
    assert budget.bytes == 500
    with pytest.raises(Overloaded):
        slow.add_bytes(1)
    slow.close()
    assert budget.bytes == 500


def test_a_request_that_was_read_completely_keeps_its_memory(budget, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(inflight, "monotonic", lambda: now[0])
    done, late = budget.share(), budget.share()
    done.begin_waiting(pytest.fail)
    done.add_bytes(900)
    done.end_waiting()
    now[0] += 60
    with pytest.raises(Overloaded):
        late.add_bytes(500)


def test_a_request_may_begin_to_wait_while_another_thread_looks_for_memory(budget):
    """The search went through the waiting requests without a lock: "dictionary changed size during iteration"."""
    another, full = budget.share(), budget.share()
    full.add_bytes(1000)

    class Waiting(inflight.Share):
        """Its bytes are read by the search; meanwhile another request begins to wait, on its own thread."""

        bytes = property(lambda _: begin(), lambda *_: None)

    def begin() -> int:
        thread = threading.Thread(target=another.begin_waiting, args=(lambda: None,))
        thread.start()
        thread.join(0.2)  # with the lock it does not end before the search
        return 0

    Waiting(budget).begin_waiting(lambda: None)
    budget.share().begin_waiting(lambda: None)
    with pytest.raises(Overloaded):
        budget.share().add_bytes(1)


def test_a_request_over_the_maximum_of_one_request_is_too_large_and_not_overloaded():
    budget = Inflight(80 * MIB, 80_000_000)
    with pytest.raises(BodyTooLarge):
        budget.share().add_bytes(75 * MIB)
    with pytest.raises(TooManyPixels):
        budget.share().add_pixels(75_000_000)
    budget.share().add_bytes(70 * MIB)
    budget.share().add_pixels(70_000_000)


@pytest.mark.parametrize(
    ("memory", "size", "pixels"),
    [(1 << 30, 128 * MIB, 64_000_000), (4 << 30, 512 * MIB, 134_217_728), (1 << 40, 1024 * MIB, 512_000_000)],
)
def test_the_default_budgets_depend_on_the_memory_of_the_host(monkeypatch, memory, size, pixels):
    monkeypatch.setattr(host, "memory_bytes", lambda: memory)
    budget = Inflight(None, None)
    assert (budget.max_bytes, budget.max_pixels) == (size, pixels)
