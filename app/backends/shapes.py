"""Compiles models for frequent frame shapes."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
Shape = tuple[int, ...]

log = logging.getLogger("yolopard.shapes")

MAX_MODELS = 8  # kept at a time
MIN_FRAMES = 8  # of a shape before it is compiled
WINDOW_FRAMES = 2048  # after this number of frames all counts are halved


class Shapes(Generic[T]):
    """Models of the most frequent shapes, each compiled on its own thread while inference continues. That thread has
    the priority of inference: the threads that a model starts there would keep a lower one.

    A shape replaces another only if it is twice as frequent. Otherwise images of always new sizes would keep a core
    busy with compiling.
    """

    def __init__(self, make: Callable[[Shape], T], listed: Iterable[Shape] = ()) -> None:
        """Compile the models of the `listed` shapes at once."""
        self._make = make
        self._made: dict[Shape, T] = {shape: make(shape) for shape in listed}
        self._seen: Counter[Shape] = Counter()
        self._lock = threading.Lock()
        self._compiling: threading.Thread | None = None
        self._closed = False

    def get(self, shape: Shape) -> T | None:
        """Count a frame of this shape; return the shape's model, or None if it is not compiled."""
        with self._lock:
            self._seen[shape] += 1
            if self._seen.total() > WINDOW_FRAMES:
                self._seen = Counter({each: count // 2 for each, count in self._seen.items() if count > 1})
            if not self._made and not self._closed:  # the first frame comes at warm-up
                self._made[shape] = self._make(shape)
            if shape not in self._made and self._compiling is None and self._is_frequent(shape):
                self._compiling = threading.Thread(target=self._compile, args=(shape,), name="compile", daemon=True)
                self._compiling.start()
            return self._made.get(shape)

    def close(self) -> None:
        """Wait for a compilation in progress, then delete all models; no more are compiled."""
        with self._lock:
            self._closed = True
            compiling = self._compiling
        if compiling is not None:
            compiling.join()
        self._made.clear()

    def _is_frequent(self, shape: Shape) -> bool:
        if self._closed or self._seen[shape] < MIN_FRAMES:
            return False
        return len(self._made) < MAX_MODELS or self._seen[shape] >= 2 * self._seen[self._rarest()]

    def _rarest(self) -> Shape:
        return min(self._made, key=self._seen.__getitem__)

    def _compile(self, shape: Shape) -> None:
        try:
            made = self._make(shape)
        except Exception:
            log.exception("compiling a model for frames of %s failed; the model for all shapes serves them", shape)
            self._closed = True
            return
        with self._lock:
            if len(self._made) >= MAX_MODELS:
                del self._made[self._rarest()]
            self._made[shape] = made
            self._compiling = None
        log.info("compiled a model for frames of %s", "x".join(map(str, shape[:2])))
