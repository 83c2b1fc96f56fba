"""The limits of one image: pixels, memory and scans."""

from dataclasses import dataclass

from app.errors import TooManyPixels

MAX_SIDE = 65_535
SMALL_BODY_BYTES = 1 << 20  # files up to this size have a memory limit too, whatever their format
BYTES_PER_PIXEL = 3.75  # memory limit of a small body: 188 MB for 50 million pixels, below the documented 200 MB
MAX_SCANS = 100  # of a JPEG, as in libjpeg's own tools
MAX_PASSES, MAX_SMALL_BODY_PASSES = 32, 10  # passes over MAX_PIXELS, for a large and for a small body
_MIN_PIXEL_LIMIT = 50_000_000  # limits of memory and scans are computed for at least this number of pixels


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one image: total pixels, and pixels of its longer side."""

    max_pixels: int
    max_side: int = MAX_SIDE

    def check_size(self, width: int, height: int) -> None:
        """Raise TooManyPixels if the image exceeds them."""
        if max(width, height) > self.max_side:
            raise TooManyPixels(f"the image is {width}x{height}; a side of at most {self.max_side} pixels is accepted")
        if width * height > self.max_pixels:
            raise TooManyPixels(f"the image is {width}x{height}; at most {self.max_pixels} pixels are accepted")

    def check_memory(self, width: int, height: int, body: int, cost: float) -> None:
        """Raise TooManyPixels if a small file would take too much memory.

        `body` is the size of the file in bytes, `cost` the memory to decode one pixel in bytes.
        """
        max_pixels = int(max(self.max_pixels, _MIN_PIXEL_LIMIT) * BYTES_PER_PIXEL / cost)
        if body <= SMALL_BODY_BYTES and width * height > max_pixels:
            raise TooManyPixels(
                f"the image is {width}x{height}; at most {max_pixels} pixels of this kind are accepted in a file of up "
                f"to {SMALL_BODY_BYTES} bytes: send it as a baseline JPEG, or smaller"
            )

    def max_scans(self, width: int, height: int, body: int) -> int:
        """Return the maximum number of scans of an image, whose file has `body` bytes."""
        passes = MAX_SMALL_BODY_PASSES if body <= SMALL_BODY_BYTES else MAX_PASSES
        return min(MAX_SCANS, passes * max(self.max_pixels, _MIN_PIXEL_LIMIT) // max(width * height, 1))
