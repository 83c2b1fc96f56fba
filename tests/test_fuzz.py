"""Some of the malformed requests of `python tests/fuzz 50000`, from a seed; and the parsers without a server."""

import base64
import contextlib
import math
import os
import socket
import time

import conftest
import fakes
import fuzz
import grpc
import numpy as np
import pytest
from conftest import free_port
from fuzz import kserve, parts, slow, web
from fuzz.cost import Meter
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from app.api.protocols.kserve import messages as kserve_messages
from app.api.protocols.kserve.models import ImageModel, TensorModel
from app.api.protocols.kserve.wire import parse
from app.api.request import urls
from app.api.request.body import Limit
from app.api.request.images import from_base64
from app.api.request.multipart import Parts
from app.errors import RequestError, Unsupported
from app.serving.inflight import Inflight
from app.vision import preprocess

pytestmark = pytest.mark.usefixtures("needs_engine")

KEY = b"0123456789abcdef"
HOSTS = ["images.example", "images.example:8443"]

few = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def fuzz_server(live) -> fuzz.Server:
    return fuzz.Server(live.url, f"127.0.0.1:{live.service.settings.grpc_port}", os.getpid())


def test_malformed_requests_to_every_protocol_get_no_5xx_and_a_valid_one_succeeds(serve):
    live = serve(grpc_port=free_port(), **kserve.LIMITS)
    outcome = fuzz.run(fuzz_server(live), 900, senders=("web", "kserve", "grpc"), parts=2)
    assert [
        failure for failure in outcome.failures if "growth" not in failure
    ] == []  # the server runs in the tests' process
    assert {protocol for protocol, _ in outcome.statuses} == {*web.PATHS.values(), "kserve", "grpc"}
    assert {"200", "400", "405", "415", "422", "OK", "INVALID_ARGUMENT"} <= {status for _, status in outcome.statuses}
    assert live.client.post("/v1/detect", content=parts.IMAGES[0]).status_code == 200
    assert live.service.predictor.pending == 0


def test_malformed_http_gets_no_5xx_and_a_valid_request_succeeds(serve):
    live = serve(grpc_port=free_port())
    outcome = fuzz.run(fuzz_server(live), 100, senders=["wire"], parts=2)
    assert [failure for failure in outcome.failures if "growth" not in failure] == []
    assert {("wire", "none"), ("wire", "200"), ("wire", "400")} <= set(outcome.statuses)
    assert live.client.post("/v1/detect", content=parts.IMAGES[0]).status_code == 200


@pytest.fixture(scope="module")
def locked():
    settings = {"api_keys": (KEY.decode(),), "grpc_port": free_port()}
    with conftest.serve_engine(fakes.Device(fakes.ROWS), fakes.stored(), **settings) as live:
        yield live


SHOWN = [
    st.sampled_from([b"Authorization", b"X-API-Key"]),
    st.sampled_from([b"", b"Bearer ", b"bearer", b"Basic ", b"Bearer Bearer "]),
    parts.broken(KEY),
]


@few
@given(st.sampled_from([*web.PATHS]), *SHOWN)
def test_every_protocol_refuses_wrong_keys(locked, path, name, scheme, key):
    shown = (scheme + key).translate(None, bytes([*range(32), 127])).strip()  # valid bytes of a header
    assume(shown.removeprefix(b"Bearer ").strip() != KEY)
    answer = locked.client.post(path.format(model="pets"), headers=[(name, shown)], content=parts.IMAGES[0])
    assert 400 <= answer.status_code < 500


@few
@given(*SHOWN)
def test_grpc_refuses_wrong_keys(locked, name, scheme, key):
    shown = bytes(each for each in scheme + key if 32 <= each < 127).decode()  # valid characters of metadata
    assume(shown.removeprefix("Bearer ").strip() != KEY.decode())
    with grpc.insecure_channel(f"127.0.0.1:{locked.service.settings.grpc_port}") as channel:
        call = channel.unary_unary(kserve.SERVICE + "ModelMetadata", request_serializer=bytes)
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", metadata=[(name.decode().lower(), shown)], timeout=30)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@few
@given(
    st.lists(
        st.sampled_from([*HOSTS, "http", "https", "://", "/", "\\", "@", ":", "?", "#", "[::1]", "%00", "ü", "\0"])
    )
    .map("".join)
    .map(lambda text: f"http://{text}")
    | st.text()
)
def test_any_text_is_a_url_of_an_allowed_host_or_refused(text):
    with contextlib.suppress(RequestError):
        assert urls._allowed(text, HOSTS).netloc.decode() in HOSTS


@few
@given(parts.damaged_images())
def test_any_bytes_are_an_image_or_a_request_error(data):
    with contextlib.suppress(RequestError):
        pixels = preprocess.decode(data, 1_000_000)
        assert pixels.ndim == 3


@few
@given(web.forms(), st.integers(1, 50))
def test_a_form_is_parsed_the_same_in_chunks_of_any_size(form, size):
    body, kind = form

    def parsed(size: int):
        try:
            parts = Parts(kind, 2, fields=True)
            for at in range(0, len(body), size):
                parts.feed(body[at : at + size])
            return [(part.name, part.is_file, bytes(part.data)) for part in parts.parts()]
        except RequestError as error:
            return type(error)

    assert parsed(size) == parsed(len(body) or 1)


@few
@given(st.binary(max_size=100), st.sampled_from([b"data:image/png;base64,", b""]), st.integers(1, 80))
def test_base64_in_lines_and_unpadded_is_decoded(data, prefix, width):
    text = base64.urlsafe_b64encode(data).rstrip(b"=")
    lines = b"\r\n".join(text[at : at + width] for at in range(0, len(text), width))
    assert from_base64(prefix + lines) == data


@few
@given(st.binary(max_size=60))
def test_any_text_is_base64_or_a_request_error(text):
    with contextlib.suppress(RequestError):
        from_base64(text)


@few
@given(kserve.bodies("images") | kserve.bodies("image"), st.sampled_from([TensorModel, ImageModel]))
def test_any_body_is_a_kserve_request_or_refused(made, kind):
    body, reported = made
    headers = Headers(raw=[(name.lower().encode(), value.encode("latin-1")) for name, value in reported.items()])
    with contextlib.suppress(RequestError, Unsupported):
        question = parse(
            body, headers, kind(fakes.MODEL, 4), Limit(300_000, Inflight(None, None).share(), max_json_bytes=300_000)
        )
        assert question.inference.inputs is not None


@few
@given(kserve.inferences("pets"))
def test_any_grpc_message_is_an_inference_or_refused(message):
    with contextlib.suppress(RequestError):
        for tensor in kserve_messages.read_inference(message, message.raw_input_contents).inputs:
            assert math.prod(tensor.shape) == np.size(tensor.data)


def test_a_5xx_is_reported(serve, device):
    live = serve(grpc_port=free_port())
    device.failure = RuntimeError("broken")
    for sender, status in (("web", "500"), ("kserve", "500"), ("grpc", "INTERNAL")):
        failures = fuzz.run(fuzz_server(live), 100, senders=(sender,), parts=2).failures
        assert any(f": {status}: " in failure for failure in failures), failures


def test_growth_is_reported():
    outcome, before = fuzz.Outcome(), fuzz.Vitals(100, 10, 20)
    for after, failures in (
        (fuzz.Vitals(110, 11, 21), 0),
        (fuzz.Vitals(130, 10, 20), 1),
        (fuzz.Vitals(100, 20, 20), 2),
        (fuzz.Vitals(100, 10, 30), 3),
    ):
        outcome.vitals = [before, after]
        outcome.check_growth()
        assert len(outcome.failures) == failures


def test_open_files_are_counted_without_the_connections_of_slow_clients():
    with socket.create_server(("127.0.0.1", 0)) as listening, contextlib.ExitStack() as kept:
        before = fuzz.Vitals.of(os.getpid()).files
        clients = slow.SlowClients(f"http://127.0.0.1:{listening.getsockname()[1]}", lambda *_: None)
        kept.callback(clients.close)
        for _ in range(3):
            clients.add(slow.SlowClient(b"GET", b"", half=False))
            kept.enter_context(listening.accept()[0])
        own = 3  # the client sockets, which are in this process
        assert fuzz.Vitals.of(os.getpid()).files == before + 2 * own
        assert fuzz.Vitals.of(os.getpid(), clients.ports()).files == before + own


@pytest.mark.parametrize("kind", range(len(parts.IMAGES)))
def test_the_images_to_damage_are_valid(kind):
    assert preprocess.decode(parts.IMAGES[kind], 1000).shape == (16, 24, 3)


def test_slow_half_and_endless_clients_get_no_5xx_and_a_valid_request_succeeds(serve):
    live = serve(grpc_port=free_port())
    outcome = fuzz.run(fuzz_server(live), 200, senders=["slow"], parts=2)
    assert [failure for failure in outcome.failures if "growth" not in failure] == []
    assert {"none", "400"} <= {status for _, status in outcome.statuses}
    assert live.client.post("/v1/detect", content=parts.IMAGES[0]).status_code == 200


@pytest.mark.parametrize("cost", ["cpu", "memory", "none", "once"])
def test_a_request_that_costs_too_much_twice_is_reported(cost):
    reported, sent = [], []

    def send(made: str) -> None:
        sent.append(made)
        if cost == "memory" or (cost == "once" and len(sent) == 1):
            np.ones(40_000_000)  # 320 MB
        until = time.process_time() + (1.2 if cost == "cpu" else 0)
        while time.process_time() < until:
            pass

    Meter(os.getpid(), reported.append).watch(send, "a request")
    assert len(sent) == (1 if cost == "none" else 2)
    assert len(reported) == (1 if cost in ("cpu", "memory") else 0)
    assert all("'a request'" in each for each in reported)
