"""Which shapes of frames get a compiled model of their own, and when."""

import logging
import os
import threading

import pytest

from app.backends.shapes import MAX_MODELS, MIN_FRAMES, WINDOW_FRAMES, Shapes

FIRST = (640, 640, 3)


def shape(number: int) -> tuple[int, int, int]:
    return (32 * (number + 1), 640, 3)


class Compiler:
    """Makes models, each known by its shape; `gate` holds those that are made in the background."""

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
    """At work: the first shape, that of the warm-up, is there."""
    shapes = Shapes(compiler)
    assert shapes.get(FIRST) == "model of 640"
    yield shapes
    compiler.gate.set()
    shapes.close()


def ask(shapes: Shapes[str], which: tuple[int, ...], times: int) -> list[str | None]:
    """What frames of the shape are given; each waits until nothing is being compiled any more."""
    given = []
    for _ in range(times):
        given.append(shapes.get(which))
        if shapes._compiling is not None:
            shapes._compiling.join(10)
    return given


def fill(shapes: Shapes[str], times: int = MIN_FRAMES) -> None:
    """As many models as are kept: that of FIRST, which came once, and those of others, which came `times` times."""
    for number in range(MAX_MODELS - 1):
        ask(shapes, shape(number), times)


def test_the_first_shape_is_compiled_at_once(shapes, compiler):
    assert compiler.made == [FIRST]
    assert compiler.threads == [threading.current_thread().name]
    assert ask(shapes, FIRST, 3) == ["model of 640"] * 3
    assert compiler.made == [FIRST]


def test_another_shape_is_compiled_when_it_has_come_often(shapes, compiler):
    assert ask(shapes, shape(0), MIN_FRAMES) == [None] * MIN_FRAMES
    assert shapes.get(shape(0)) == "model of 32"
    assert compiler.made == [FIRST, shape(0)]


def test_a_shape_that_comes_seldom_is_not_compiled(shapes, compiler):
    assert ask(shapes, shape(0), MIN_FRAMES - 1) == [None] * (MIN_FRAMES - 1)
    assert compiler.made == [FIRST]


def test_while_there_is_room_a_shape_needs_to_come_often_and_no_more_than_that(shapes, compiler):
    ask(shapes, FIRST, 100 * MIN_FRAMES)
    ask(shapes, shape(0), MIN_FRAMES)
    assert compiler.made == [FIRST, shape(0)]


def test_compiling_holds_up_nobody(shapes, compiler):
    compiler.gate.clear()
    for _ in range(MIN_FRAMES):
        shapes.get(shape(0))
    assert compiler.begun.acquire(timeout=10)
    assert shapes.get(shape(0)) is None  # the one for all shapes serves meanwhile
    assert shapes.get(FIRST) == "model of 640"
    compiler.gate.set()
    shapes._compiling.join(10)
    assert shapes.get(shape(0)) == "model of 32"


def test_compiling_goes_on_a_thread_of_its_own_at_the_priority_of_all(shapes, compiler):
    """At a lower one it did not come to its end on a busy server."""
    ask(shapes, shape(0), MIN_FRAMES)
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
    ask(shapes, shape(1), 1)  # comes again, and is still one that comes often
    assert compiler.made == [FIRST, shape(0), shape(1)]


def test_a_new_model_is_a_line_in_the_log(shapes, caplog):
    with caplog.at_level(logging.INFO):
        ask(shapes, shape(0), MIN_FRAMES)
    assert caplog.messages == ["compiled a model for frames of 32x640"]


def test_no_more_than_so_many_are_kept(shapes, compiler):
    fill(shapes)
    assert len(shapes._made) == MAX_MODELS
    ask(shapes, shape(MAX_MODELS), 4 * MIN_FRAMES)
    assert len(shapes._made) == MAX_MODELS
    assert shapes.get(shape(MAX_MODELS)) == f"model of {shape(MAX_MODELS)[0]}"


def test_the_rarest_makes_room(shapes):
    fill(shapes)
    ask(shapes, shape(MAX_MODELS), 2 * MIN_FRAMES)
    assert set(shapes._made) == {shape(MAX_MODELS), *map(shape, range(MAX_MODELS - 1))}  # FIRST came once
    ask(shapes, shape(3), 1)
    for number in (0, 1, 2, 4, 5, 6):
        ask(shapes, shape(number), 9)
    ask(shapes, shape(MAX_MODELS + 1), 2 * (MIN_FRAMES + 1))
    assert shape(3) not in shapes._made


def test_a_shape_takes_the_place_of_another_only_when_it_comes_twice_as_often(shapes):
    ask(shapes, FIRST, 19)  # 20 with the warm-up
    fill(shapes, 20)
    ask(shapes, shape(MAX_MODELS), 39)
    assert shape(MAX_MODELS) not in shapes._made
    ask(shapes, shape(MAX_MODELS), 1)
    assert shape(MAX_MODELS) in shapes._made


def test_shapes_that_all_come_equally_often_are_not_compiled_again_and_again(shapes, compiler):
    for _ in range(10 * WINDOW_FRAMES // (3 * MAX_MODELS)):
        for number in range(3 * MAX_MODELS):
            ask(shapes, shape(number), 1)
    assert len(compiler.made) < 2 * MAX_MODELS
    assert len(set(compiler.made)) == len(compiler.made)


def test_what_came_long_ago_is_forgotten(shapes, compiler):
    ask(shapes, FIRST, 10)
    fill(shapes, 10)
    for _ in range(2):
        ask(shapes, shape(0), WINDOW_FRAMES)  # those before count a quarter, and less
    ask(shapes, shape(MAX_MODELS), MIN_FRAMES)
    assert shape(MAX_MODELS) in shapes._made
    assert len(shapes._seen) <= MAX_MODELS + 1


def test_the_memory_of_shapes_is_bounded(shapes, compiler):
    for number in range(3 * WINDOW_FRAMES):
        shapes.get((number, number, 3))
    assert len(shapes._seen) <= WINDOW_FRAMES
    assert compiler.made == [FIRST]


def test_a_shape_that_does_not_compile_is_told_once_and_ends_the_compiling(shapes, compiler, caplog):
    compiler.failure = RuntimeError("no memory is left")
    given = ask(shapes, shape(0), 3 * MIN_FRAMES) + ask(shapes, shape(1), 3 * MIN_FRAMES)
    assert set(given) == {None}
    assert compiler.made == [FIRST, shape(0)]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith("compiling a model for frames of (32, 640, 3) failed")
    assert record.exc_info[1] is compiler.failure
    assert shapes.get(FIRST) == "model of 640"


def test_lanes_that_come_at_the_same_time_share_one_first_model(compiler):
    shapes = Shapes(compiler)
    together, given = threading.Barrier(8), []

    def instance() -> None:
        together.wait(10)
        given.append(shapes.get(FIRST))

    instances = [threading.Thread(target=instance) for _ in range(8)]
    for each in instances:
        each.start()
    for each in instances:
        each.join(10)
    assert (given, compiler.made) == (["model of 640"] * 8, [FIRST])


def test_close_waits_for_what_is_being_compiled_and_compiles_nothing_more(shapes, compiler):
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
    assert shapes._made == {}  # the models' memory goes back
    assert ask(shapes, shape(1), 3 * MIN_FRAMES) == [None] * 3 * MIN_FRAMES
    assert compiler.made == [FIRST, shape(0)]
