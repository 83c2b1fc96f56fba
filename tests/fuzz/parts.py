"""Parts of malformed requests."""

import io
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from app.vision.preprocess import KINDS

Draw = Callable[[st.SearchStrategy[Any]], Any]


def image(kind: str) -> bytes:
    """Return a small image of noise in this format."""
    file = io.BytesIO()
    Image.effect_noise((24, 16), 80).convert("RGB").save(file, kind)
    return file.getvalue()


IMAGES = [image(kind) for kind in KINDS]
HEADS = [
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"GIF89a",
    b"II*\x00",
    b"%PDF",
    b"{",
    b"<svg",
    b"RIFF\0\0\0\0WEBP",
]
WORDS = st.one_of(
    st.sampled_from(["", "0", "0.5", "1", "-1", "1e400", "nan", "inf", "0,5", "true", "\0", "ü", "9" * 400]),
    st.sampled_from(["image", "rle", "json", "polygon"]),
    st.text(max_size=20),
)
NAMES = st.one_of(
    st.sampled_from(
        ["conf", "iou", "max_det", "classes", "format", "engine", "compare", "masks", "file", "image", "source", "url"]
    ),
    st.sampled_from(["min_confidence", "api_key", "model", "decimals", "normalize", "confidence", "overlap", "size"]),
    st.text(max_size=10),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def broken(draw: Draw, whole: bytes) -> bytes:
    """Draw the bytes after up to three changes: cut, other bytes, more bytes, or a part repeated."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        change = draw(st.sampled_from(["cut", "other", "more", "twice"]))
        if change == "cut":
            del data[at:]
        elif change == "other":
            data[at : at + 4] = draw(st.binary(max_size=8))
        elif change == "more":
            data += draw(st.binary(max_size=16))
        else:
            data += data[:at]
    return bytes(data)


@st.composite
def damaged_images(draw: Draw) -> bytes:
    """Draw a valid or damaged image, or the first bytes of a known format followed by random bytes."""
    if draw(st.booleans()):
        return draw(broken(draw(st.sampled_from(IMAGES))))
    return draw(st.sampled_from([b"", *HEADS])) + draw(st.binary(max_size=64))
