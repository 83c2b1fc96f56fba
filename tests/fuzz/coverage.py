"""python tests/fuzz/coverage.py multipart|kserve|message|image SECONDS: test a parser with atheris.

atheris searches input by code coverage. It stops at the first input that raises another error than a refusal.
Needs the extra `fuzz`.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "tests")
sys.path.append(str(ROOT))

with atheris.instrument_imports(include=["app", "python_multipart", "PIL"]):
    from app.api.protocols.kserve import messages as kserve_messages
    from app.api.protocols.kserve import wire
    from app.api.protocols.kserve.models import ImageModel, TensorModel
    from app.api.request.body import Limit
    from app.api.request.multipart import Parts
    from app.errors import RequestError, Unsupported
    from app.model import ModelInfo
    from app.serving.inflight import Inflight
    from app.vision import preprocess

from starlette.datastructures import Headers  # noqa: E402
from tritonclient.grpc import service_pb2 as messages  # noqa: E402

from fuzz.parts import IMAGES  # noqa: E402

INFO = ModelInfo("pets", "detect", {0: "cat"}, stride=32, imgsz=64, shapes=None)
MODELS = [TensorModel(INFO, 4), ImageModel(INFO, 4)]
MAX_SIZE = 100_000  # bytes and pixels


def multipart(data: bytes) -> None:
    parts = Parts("multipart/form-data; boundary=b", 2, fields=True)
    half = len(data) // 2
    for chunk in (data[:half], data[half:]):
        parts.feed(chunk)
    parts.parts()


def kserve(data: bytes) -> None:
    """Parse the input from byte 2 on. Byte 0 selects the model, byte 1 the headers."""
    choices = [
        {},
        {"inference-header-content-length": "0"},
        {"content-encoding": "gzip"},
        {"content-encoding": "deflate"},
    ]
    choices += [{"inference-header-content-length": str(size)} for size in range(60, 252)]
    picked, header, body = data[:1] or b"\0", data[1:2] or b"\0", data[2:]
    headers = Headers(choices[header[0] % len(choices)])
    wire.parse(
        body, headers, MODELS[picked[0] % 2], Limit(MAX_SIZE, Inflight(None, None).share(), max_json_bytes=MAX_SIZE)
    )


def message(data: bytes) -> None:
    kserve_messages.read_request(data, MAX_SIZE)


def image(data: bytes) -> None:
    assert preprocess.decode(data, MAX_SIZE).ndim == 3


_JSON = b'{"inputs":[{"name":"images","shape":[1,3,2,1],"datatype":"UINT8","data":[0,1,2,3,4,5]}]}'
_BINARY = b'{"inputs":[{"name":"image","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":6}}]}'
_INPUT = {"name": "image", "datatype": "BYTES", "shape": [1]}
TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {  # name -> function, first inputs
    "multipart": (
        multipart,
        [b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--b--\r\n'],
    ),
    "kserve": (kserve, [b"\0\0" + _JSON, b"\1" + bytes([len(_BINARY) - 56]) + _BINARY + b"\2\0\0\0ab"]),
    "message": (
        message,
        [
            messages.ModelInferRequest(inputs=[_INPUT], raw_input_contents=[b"\1\0\0\0a"]).SerializeToString(),
            messages.ModelInferRequest(inputs=[_INPUT | {"contents": {"bytes_contents": [b"a"]}}]).SerializeToString(),
        ],
    ),
    "image": (image, IMAGES),
}


def main(name: str, seconds: str) -> None:
    target, inputs = TARGETS[name]

    def test(data: bytes) -> None:
        try:
            target(data)
        except (RequestError, Unsupported):
            return

    corpus = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for i, data in enumerate(inputs):
        (corpus / str(i)).write_bytes(data)
    options = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", f"-artifact_prefix={corpus}/failed-"]
    atheris.Setup([sys.argv[0], str(corpus), *options], test)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
