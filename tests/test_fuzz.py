"""A few of the malformed requests of `python tests/fuzz 50000`, from a seed; and the parsers, without a server."""

import base64
import contextlib

import fuzz
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import images
from app.api.multipart import Parts
from app.api.source import from_base64
from app.errors import RequestError

few = settings(
    max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_malformed_requests_to_every_protocol_get_no_5xx_and_the_next_right_one_is_answered(house):
    outcome = fuzz.run(house.url, 400)
    assert outcome.failures == []
    assert {path for path, _ in outcome.statuses} == {path.format(model="pets") for path in fuzz.PATHS}
    assert {200, 400, 405, 415, 422} <= {status for _, status in outcome.statuses}
    assert house.client.post("/v1/detect", content=fuzz.IMAGES[0]).status_code == 200
    assert house.service.predictor.pending == 0


@few
@given(fuzz.pictures())
def test_any_bytes_are_an_image_or_a_request_error(data):
    with contextlib.suppress(RequestError):
        pixels = images.decode(data, 1_000_000)
        assert pixels.ndim == 3


@few
@given(fuzz.forms(), st.integers(1, 50))
def test_a_form_is_the_same_in_whatever_chunks_it_comes(form, size):
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
def test_base64_of_any_bytes_gives_them_back_in_lines_and_unpadded(data, prefix, width):
    text = base64.urlsafe_b64encode(data).rstrip(b"=")
    lines = b"\r\n".join(text[at : at + width] for at in range(0, len(text), width))
    assert from_base64(prefix + lines) == data


@few
@given(st.binary(max_size=60))
def test_any_other_text_is_refused_in_words_if_at_all(text):
    with contextlib.suppress(RequestError):
        from_base64(text)


def test_a_5xx_would_be_told(serve, device):
    live = serve()
    device.failure = RuntimeError("broken")
    assert fuzz.run(live.url, 60).failures


@pytest.mark.parametrize("kind", range(len(fuzz.IMAGES)))
def test_the_images_that_are_broken_are_sound_at_first(kind):
    assert images.decode(fuzz.IMAGES[kind], 1000).shape == (16, 24, 3)
