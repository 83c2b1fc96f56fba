"""Frequent frame shapes get their own compiled model."""

import logging
import os
import threading

import pytest

from app.backends.shapes import MAX_MODELS, MIN_FRAMES, WINDOW_FRAMES, Shapes

FIRST = (640, 640, 3)


def shape(number: int) -> tuple[int, int, int]:
    return (32 * (number + 1), 640, 3)


class Compiler:
    """Makes models, each named after its shape; while `gate` is cleared, background compilation blocks."""

    def __init__(self) -> None:
        self.made: list[tuple[int, ...]] = []
        self.threads: list[str] = []
        self.nice: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.failure: Exception | None = None

    def __call__(self, shape: tuple[int, ...]) -> str:
        self.made.append(shape)
        self.threads.append(threading.current_thread().name)
        self.nice.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        if self.threads[-1] == "compile":
            self.begun.release()
            assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        return f"model of {shape[0]}"


@pytest.fixture
def compiler():
    return Compiler()


@pytest.fixture
def shapes(compiler):
    """Shapes after warm-up: the model for FIRST is compiled."""
    shapes = Shapes(compiler)
    assert shapes.get(FIRST) == "model of 640"
    yield shapes
    compiler.gate.set()
    shapes.close()


def infer(shapes: Shapes[str], which: tuple[int, ...], times: int) -> list[str | None]:
    """Return the models that `times` frames of the shape get; wait for the compilation after each."""
    given = []
    for _ in range(times):
        given.append(shapes.get(which))
        if shapes._compiling is not None:
            shapes._compiling.join(10)
    return given


def fill(shapes: Shapes[str], times: int = MIN_FRAMES) -> None:
    """Compile MAX_MODELS models: that of FIRST, used once, and those of other shapes, used `times` times."""
    for number in range(MAX_MODELS - 1):
        infer(shapes, shape(number), times)


def test_the_first_shape_is_compiled_at_once(shapes, compiler):
    assert compiler.made == [FIRST]
    assert compiler.threads == [threading.current_thread().name]
    assert infer(shapes, FIRST, 3) == ["model of 640"] * 3
    assert compiler.made == [FIRST]


def test_another_shape_is_compiled_once_it_is_frequent(shapes, compiler):
    assert infer(shapes, shape(0), MIN_FRAMES) == [None] * MIN_FRAMES
    assert shapes.get(shape(0)) == "model of 32"
    assert compiler.made == [FIRST, shape(0)]


def test_a_rare_shape_is_not_compiled(shapes, compiler):
    assert infer(shapes, shape(0), MIN_FRAMES - 1) == [None] * (MIN_FRAMES - 1)
    assert compiler.made == [FIRST]


def test_a_frequent_shape_is_compiled_while_fewer_than_the_maximum_are_kept(shapes, compiler):
    infer(shapes, FIRST, 100 * MIN_FRAMES)
    infer(shapes, shape(0), MIN_FRAMES)
    assert compiler.made == [FIRST, shape(0)]


def test_compilation_does_not_block_inference(shapes, compiler):
    compiler.gate.clear()
    for _ in range(MIN_FRAMES):
        shapes.get(shape(0))
    assert compiler.begun.acquire(timeout=10)
    assert shapes.get(shape(0)) is None  # the model for all shapes is used meanwhile
    assert shapes.get(FIRST) == "model of 640"
    compiler.gate.set()
    shapes._compiling.join(10)
    assert shapes.get(shape(0)) == "model of 32"


def test_compilation_runs_in_its_own_thread_at_normal_priority(shapes, compiler):
    """At a lower priority it did not finish on a busy server."""
    infer(shapes, shape(0), MIN_FRAMES)
    assert compiler.threads[1:] == ["compile"]
    assert compiler.nice == [os.getpriority(os.PRIO_PROCESS, 0)] * 2


def test_one_shape_is_compiled_at_a_time(shapes, compiler):
    compiler.gate.clear()
    for number in (0, 1):
        for _ in range(2 * MIN_FRAMES):
            shapes.get(shape(number))
    assert compiler.begun.acquire(timeout=10)
    assert compiler.made == [FIRST, shape(0)]
    compiler.gate.set()
    shapes._compiling.join(10)
    infer(shapes, shape(1), 1)  # this shape is still frequent
    assert compiler.made == [FIRST, shape(0), shape(1)]


def test_a_new_model_is_logged(shapes, caplog):
    with caplog.at_level(logging.INFO):
        infer(shapes, shape(0), MIN_FRAMES)
    assert caplog.messages == ["compiled a model for frames of 32x640"]


def test_at_most_max_models_are_kept(shapes, compiler):
    fill(shapes)
    assert len(shapes._made) == MAX_MODELS
    infer(shapes, shape(MAX_MODELS), 4 * MIN_FRAMES)
    assert len(shapes._made) == MAX_MODELS
    assert shapes.get(shape(MAX_MODELS)) == f"model of {shape(MAX_MODELS)[0]}"


def test_the_rarest_shape_is_replaced(shapes):
    fill(shapes)
    infer(shapes, shape(MAX_MODELS), 2 * MIN_FRAMES)
    assert set(shapes._made) == {shape(MAX_MODELS), *map(shape, range(MAX_MODELS - 1))}  # FIRST was used once
    infer(shapes, shape(3), 1)
    for number in (0, 1, 2, 4, 5, 6):
        infer(shapes, shape(number), 9)
    infer(shapes, shape(MAX_MODELS + 1), 2 * (MIN_FRAMES + 1))
    assert shape(3) not in shapes._made


def test_a_shape_replaces_another_only_if_it_is_twice_as_frequent(shapes):
    infer(shapes, FIRST, 19)  # 20 with the warm-up
    fill(shapes, 20)
    infer(shapes, shape(MAX_MODELS), 39)
    assert shape(MAX_MODELS) not in shapes._made
    infer(shapes, shape(MAX_MODELS), 1)
    assert shape(MAX_MODELS) in shapes._made


def test_equally_frequent_shapes_are_not_compiled_repeatedly(shapes, compiler):
    for _ in range(10 * WINDOW_FRAMES // (3 * MAX_MODELS)):
        for number in range(3 * MAX_MODELS):
            infer(shapes, shape(number), 1)
    assert len(compiler.made) < 2 * MAX_MODELS
    assert len(set(compiler.made)) == len(compiler.made)


def test_old_counts_decay(shapes, compiler):
    infer(shapes, FIRST, 10)
    fill(shapes, 10)
    for _ in range(2):
        infer(shapes, shape(0), WINDOW_FRAMES)  # earlier counts are now a quarter or less
    infer(shapes, shape(MAX_MODELS), MIN_FRAMES)
    assert shape(MAX_MODELS) in shapes._made
    assert len(shapes._seen) <= MAX_MODELS + 1


def test_the_number_of_counted_shapes_is_bounded(shapes, compiler):
    for number in range(3 * WINDOW_FRAMES):
        shapes.get((number, number, 3))
    assert len(shapes._seen) <= WINDOW_FRAMES
    assert compiler.made == [FIRST]


def test_a_failed_compilation_is_logged_once_and_ends_compiling(shapes, compiler, caplog):
    compiler.failure = RuntimeError("no memory is left")
    given = infer(shapes, shape(0), 3 * MIN_FRAMES) + infer(shapes, shape(1), 3 * MIN_FRAMES)
    assert set(given) == {None}
    assert compiler.made == [FIRST, shape(0)]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith("compiling a model for frames of (32, 640, 3) failed")
    assert record.exc_info[1] is compiler.failure
    assert shapes.get(FIRST) == "model of 640"


def test_concurrent_instances_share_the_first_model(compiler):
    shapes = Shapes(compiler)
    barrier, given = threading.Barrier(8), []

    def get() -> None:
        barrier.wait(10)
        given.append(shapes.get(FIRST))

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (given, compiler.made) == (["model of 640"] * 8, [FIRST])


def test_close_waits_for_the_compilation_in_progress_and_starts_no_more(shapes, compiler):
    compiler.gate.clear()
    for _ in range(MIN_FRAMES):
        shapes.get(shape(0))
    assert compiler.begun.acquire(timeout=10)
    closing = threading.Thread(target=shapes.close)
    closing.start()
    compiling = shapes._compiling
    closing.join(0.05)
    assert closing.is_alive()
    compiler.gate.set()
    closing.join(10)
    assert not closing.is_alive()
    assert not compiling.is_alive()
    assert shapes._made == {}  # the models are deleted
    assert infer(shapes, shape(1), 3 * MIN_FRAMES) == [None] * 3 * MIN_FRAMES
    assert compiler.made == [FIRST, shape(0)]
