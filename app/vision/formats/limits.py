"""What one image may cost."""

from dataclasses import dataclass

from app.errors import TooManyPixels

MAX_SIDE = 65_535
SMALL_BODY = 1 << 20  # bytes; up to here the memory of one image is bounded too, whatever its kind
BYTES_PER_PIXEL = 3.75  # of what a small body may take: 188 MB for 50 million pixels, of the 200 MB promised
MAX_SCANS = 100  # of a JPEG, as of libjpeg's own tools
SCANS, SMALL_SCANS = 32, 10  # passes over MAX_PIXELS, of a large and of a small body
_LEAST = 50_000_000  # pixels that memory and scans are reckoned for, where MAX_PIXELS is less


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one image: pixels in all, and pixels of its longer side."""

    max_pixels: int
    max_side: int = MAX_SIDE

    def check_size(self, width: int, height: int) -> None:
        """Raises TooManyPixels."""
        if max(width, height) > self.max_side:
            raise TooManyPixels(f"the image is {width}x{height}; a side of at most {self.max_side} pixels is accepted")
        if width * height > self.max_pixels:
            raise TooManyPixels(f"the image is {width}x{height}; at most {self.max_pixels} pixels are accepted")

    def check_memory(self, width: int, height: int, body: int, cost: float) -> None:
        """`body` is the size of the file, `cost` the bytes that decoding takes for each pixel. Raises TooManyPixels."""
        most = int(max(self.max_pixels, _LEAST) * BYTES_PER_PIXEL / cost)
        if body <= SMALL_BODY and width * height > most:
            raise TooManyPixels(
                f"the image is {width}x{height}; at most {most} pixels of this kind are accepted in a file of up to "
                f"{SMALL_BODY} bytes: send it as a baseline JPEG, or smaller"
            )

    def most_scans(self, width: int, height: int, body: int) -> int:
        """Passes over the pixels of an image of so many bytes."""
        passes = SMALL_SCANS if body <= SMALL_BODY else SCANS
        return min(MAX_SCANS, passes * max(self.max_pixels, _LEAST) // max(width * height, 1))
