"""Bodies that are read before the API key is known: limited in number and size, and the oldest is evicted."""

import json
import socket

import pytest
from conftest import eventually

from app.api.request.body import MAX_KEYLESS_BYTES
from app.serving import unauthenticated
from app.serving.inflight import Inflight

KEY = "k" * 16


@pytest.fixture
def keyed(serve):
    return serve(api_keys=KEY)


def test_the_oldest_waiting_body_is_evicted_when_all_slots_are_taken():
    slots, budget = unauthenticated.UnauthenticatedSlots(2), Inflight(1000, 1000)
    evicted = []
    shares = [budget.share() for _ in range(3)]
    for number, share in enumerate(shares):
        share.begin_waiting(lambda number=number: evicted.append(number))
    with slots.place(shares[0]), slots.place(shares[1]), slots.place(shares[2]):
        assert evicted == [0]
    with slots.place(shares[1]), slots.place(shares[2]):
        assert evicted == [0]


@pytest.mark.parametrize(
    "path", ["/v1/vision/detection", "/v1/vision/custom/list", "/infer/object_detection", "/model/add"]
)
def test_slow_keyless_clients_do_not_block_a_client_with_the_key_in_its_body(keyed, sample, path):
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nX-Deadline-Ms: 3600000\r\n\r\n"
    keyless = []
    for _ in range(3 * unauthenticated.MAX_SLOTS):
        connection = socket.create_connection(("127.0.0.1", keyed.port), timeout=20)
        connection.sendall(head.encode())
        keyless.append(connection)
    eventually(lambda: keyed.service.inflight.waiting == unauthenticated.MAX_SLOTS)
    for _ in range(5):
        answer = keyed.client.post("/v1/vision/detection", data={"api_key": KEY}, files={"image": sample})
        assert answer.status_code == 200
    assert keyless[0].recv(12) == b"HTTP/1.1 503"
    for connection in keyless:
        connection.close()


def test_a_large_body_without_a_key_is_refused_before_it_is_complete(keyed):
    large = b"x" * (MAX_KEYLESS_BYTES + 1_000_000)
    answer = keyed.client.post("/v1/vision/detection", files={"image": large})
    assert (answer.status_code, answer.json()["code"]) == (401, 401)
    answer = keyed.client.post("/infer/object_detection", content=b'{"image": "' + large)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_a_large_body_that_starts_with_the_key_is_read(keyed, sample):
    padded = sample + b"\0" * (MAX_KEYLESS_BYTES + 1_000_000)
    form = {"data": {"api_key": KEY}, "files": {"image": padded}}
    assert keyed.client.post("/v1/vision/detection", **form).status_code == 200
    text = json.dumps({"api_key": KEY, "model_id": "pets", "image": {"type": "base64", "value": "A" * (6 << 20)}})
    assert keyed.client.post("/infer/object_detection", content=text).status_code == 422


def test_a_wrong_key_in_the_body_does_not_raise_the_limit(keyed):
    form = {"data": {"api_key": "w" * 16}, "files": {"image": b"x" * (MAX_KEYLESS_BYTES + 1_000_000)}}
    assert keyed.client.post("/v1/vision/detection", **form).status_code == 401


@pytest.mark.parametrize("path", ["/v1/vision/detection", "/infer/object_detection", "/model/add", "/pets/1"])
def test_a_key_in_the_query_is_checked_before_the_body(keyed, path):
    refused = keyed.client.post(f"{path}?api_key={KEY}", content=b"")
    assert refused.status_code != 401
    assert keyed.client.post(f"{path}?api_key={'w' * 16}", content=b"{}").status_code in (401, 422)
