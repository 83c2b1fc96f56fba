"""Which shapes of frames are worth a compiled model of their own."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
Shape = tuple[int, ...]

log = logging.getLogger("yolopard.shapes")

MAX_MODELS = 8  # models kept
MIN_FRAMES = 8  # frames of a shape before it is compiled
MEMORY = 2048  # frames after which those before count half


class Shapes(Generic[T]):
    """The models of the shapes that come most often, each compiled on a thread of its own while others serve, and at
    their priority: the threads that a model starts there would keep a lower one for its inferences.

    A shape takes the place of another only when it comes twice as often, so that images of ever changing sizes do not
    keep a core compiling.
    """

    def __init__(self, make: Callable[[Shape], T], listed: Iterable[Shape] = ()) -> None:
        """Those that are listed are made at once."""
        self._make = make
        self._made: dict[Shape, T] = {shape: make(shape) for shape in listed}
        self._seen: Counter[Shape] = Counter()
        self._lock = threading.Lock()
        self._compiling: threading.Thread | None = None
        self._closed = False

    def get(self, shape: Shape) -> T | None:
        """The shape's model, if there is one by now."""
        with self._lock:
            self._seen[shape] += 1
            if self._seen.total() > MEMORY:
                self._seen = Counter({each: count // 2 for each, count in self._seen.items() if count > 1})
            if not self._made and not self._closed:  # the first one of all comes at warm-up
                self._made[shape] = self._make(shape)
            if shape not in self._made and self._compiling is None and self._deserves(shape):
                self._compiling = threading.Thread(target=self._compile, args=(shape,), name="compile", daemon=True)
                self._compiling.start()
            return self._made.get(shape)

    def close(self) -> None:
        """Wait for what is being compiled, and compile nothing more."""
        with self._lock:
            self._closed = True
            compiling = self._compiling
        if compiling is not None:
            compiling.join()
        self._made.clear()

    def _deserves(self, shape: Shape) -> bool:
        if self._closed or self._seen[shape] < MIN_FRAMES:
            return False
        return len(self._made) < MAX_MODELS or self._seen[shape] >= 2 * self._seen[self._rarest()]

    def _rarest(self) -> Shape:
        return min(self._made, key=self._seen.__getitem__)

    def _compile(self, shape: Shape) -> None:
        try:
            made = self._make(shape)
        except Exception:
            log.exception("no model for frames of %s; the one for all shapes goes on serving them", shape)
            self._closed = True
            return
        with self._lock:
            if len(self._made) >= MAX_MODELS:
                del self._made[self._rarest()]
            self._made[shape] = made
            self._compiling = None
        log.info("frames of %s have a model of their own now", "x".join(map(str, shape[:2])))
