"""HTTP/2 frames for hostile gRPC clients."""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


START = PREFACE + frame(SETTINGS)


def header(name: str, value: str) -> bytes:
    """Return an HPACK literal without indexing."""
    return b"\0" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    size, data = len(text), text.encode()
    if size < 127:
        return bytes([size]) + data
    rest, more = size - 127, bytearray([127])
    while rest >= 128:
        more.append(rest % 128 + 128)
        rest //= 128
    return bytes([*more, rest]) + data


def call(method: str, *more: tuple[str, str]) -> bytes:
    """Return the HPACK-encoded headers of a gRPC call."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/inference.GRPCInferenceService/{method}"),
        (":authority", "127.0.0.1"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *more,
    ]
    return b"".join(header(name, value) for name, value in fields)


def message(size: int) -> bytes:
    """Return the five-byte prefix of a gRPC message of `size` bytes."""
    return b"\0" + struct.pack(">I", size)
