"""Request bodies: accepted multipart, and the limits of JSON and forms."""

import json
import time

import pytest

from app.api.request.body import MAX_CONTAINERS, MAX_STRINGS, load_json
from app.api.request.multipart import MAX_PREAMBLE
from app.errors import BodyTooLarge, MalformedBody

BOUNDARY = {"Content-Type": "multipart/form-data; boundary=b0"}
PART = b'--b0\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
END = b"--b0--\r\n"
ROUTES = {  # path: the name of its image part
    "/v1/detect": b"file",
    "/v1/predict": b"file",
    "/predict": b"file",
    "/v1/vision/detection": b"image",
    "/pets/1": b"file",
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "name", [b"", b"; filename*=UTF-8''na%C3%AFve.jpg", b'; filename="x.jpg"', b"; filename="], ids=repr
)
def test_a_part_is_an_image_by_its_name_with_or_without_a_file_name(shared_server, sample, path, name):
    body = PART % (ROUTES[path], name, sample) + END
    assert shared_server.client.post(path, content=body, headers=BOUNDARY).status_code == 200


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "preamble",
    [b"This is a message in MIME format.\r\n", b"\r\n", b"--b\r\n--b1\r\n", b"x --b0 is no line of its own\r\n"],
    ids=repr,
)
def test_text_before_the_first_boundary_is_skipped(shared_server, sample, path, preamble):
    body = preamble + PART % (ROUTES[path], b'; filename="x.jpg"', sample) + END
    assert shared_server.client.post(path, content=body, headers=BOUNDARY).status_code == 200


def test_a_body_without_a_boundary_in_the_first_bytes_is_refused(shared_server):
    answer = shared_server.client.post("/v1/detect", content=b"x" * (MAX_PREAMBLE + 1), headers=BOUNDARY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_body")


HOSTILE = {
    "ones": b"1," * 2_000_000 + b"1",
    "lists": b"[]," * 1_300_000 + b"1",
    "nested lists": b"[[[[]]]]," * 400_000 + b"1",
    "objects": b"{}," * 1_300_000 + b"1",
    "texts": b'"aa",' * 800_000 + b"1",
    "numbers": b"1e9," * 1_000_000 + b"1",
    "wrong images": b'{"type":1},' * 300_000 + b"1",
}


@pytest.mark.parametrize("values", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/infer/object_detection", b'{"model_id": "pets", "image": [%s]}'),
        ("/infer/object_detection", b'{"model_id": "pets", "class_filter": [%s], "image": []}'),
        ("/v2/models/pets/infer", b'{"inputs": [%s]}'),
        ("/v2/models/pets/infer", b'{"inputs": [{"name": "images", "datatype": "FP32", "shape": [%s]}]}'),
        ("/v2/models/pets/infer", b'{"inputs": [], "outputs": [%s]}'),
    ],
    ids=["roboflow image", "roboflow classes", "kserve inputs", "kserve shape", "kserve outputs"],
)
def test_long_lists_in_json_are_refused_before_they_are_validated(shared_server, path, form, values):
    began = time.process_time()
    answer = shared_server.client.post(path, content=form % values)
    assert answer.status_code in (400, 413, 422)
    assert len(answer.content) < 2000
    assert time.process_time() - began < 2  # it took 18 s before; time of client and server, on a busy machine


def test_at_most_five_problems_are_listed(shared_server):
    images = [{"type": "base64", "value": number} for number in range(40)]
    answer = shared_server.client.post(
        "/infer/object_detection", content=json.dumps({"model_id": "pets", "image": images})
    )
    assert answer.status_code == 422
    assert answer.json()["message"].count("; ") <= 5
    assert "more" in answer.json()["message"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b" " * 100 + b"1", BodyTooLarge),
        (b"[" + b"[]," * MAX_CONTAINERS + b"1]", MalformedBody),
        (b"[" + b'"",' * (MAX_STRINGS + 1) + b"1]", MalformedBody),
        (b"{", MalformedBody),
        (b"[" * 2000 + b"]" * 2000, MalformedBody),
    ],
)
def test_json_over_a_limit_is_not_parsed(text, error):
    with pytest.raises(error):
        load_json(text, 100 if error is BodyTooLarge else 1 << 20)


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"source=" + b"%41" * 1_000_000, 400), (b"source=" + b"A" * 9_000_000, 413), (b"source=" + b"%2B" * 1000, 422)],
    ids=["escapes", "long", "sound"],
)
def test_an_urlencoded_form_is_limited_before_it_is_unquoted(shared_server, body, status):
    """20 MB of escapes took 2 GB of memory."""
    head = {"Content-Type": "application/x-www-form-urlencoded"}
    assert shared_server.client.post("/predict", content=body, headers=head).status_code == status
