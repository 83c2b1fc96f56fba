"""API keys in each protocol, what is visible without a key, PROTOCOLS, and CORS."""

import logging
import re
from base64 import b64encode

import orjson
import pytest
from fastapi.routing import APIRoute
from posts import error, jpeg, names, post

from app.api import system
from app.api.protocols import deepstack, platform, predict, roboflow
from app.api.protocols.kserve import http as kserve
from app.api.protocols.kserve.repository import Repository
from app.system.log import JsonLines

KEY, OTHER = "key-of-the-tests-0", "key-of-the-tests-1"
OPEN = {
    *("/", "/healthz", "/readyz", "/v1/status/ping", "/v1/server/status/ping", "/info"),
    *("/v2/health/live", "/v2/health/ready"),
}
ROUTERS = {"v1": predict, "platform": platform, "deepstack": deepstack, "roboflow": roboflow}


@pytest.fixture
def live(serve):
    return serve(api_keys=(OTHER, KEY))


def every_route(service, *modules) -> list[tuple[str, str]]:
    """Return the method and path of every route, with path parameters filled in."""
    routers = [*(module.routes(service) for module in modules), kserve.routes(service, Repository(service))]
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    filled = {"{version:int}": "1", "{version}": "1", "{rest:path}": "x"}
    return [
        (method, re.sub(r"{.*?}", lambda found: filled.get(found[0], "pets"), route.path))
        for route in routes
        for method in route.methods
    ]


def test_without_a_key_only_health_the_page_and_the_docs_are_served(live):
    answered = set()
    for method, path in every_route(live.service, system, *ROUTERS.values()):
        body = b'{"model_id": "pets", "image": {"type": "base64", "value": ""}}'
        headers = {"Content-Type": "application/json"}
        status = live.client.request(
            method, path, content=body if method == "POST" else None, headers=headers
        ).status_code
        if (path, method) == ("/", "POST"):
            assert status == 401
        elif status != 401:
            answered.add(path)
    assert answered == OPEN
    assert live.client.get("/docs").status_code == live.client.get("/openapi.json").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {KEY}"},
        {"Authorization": f"Bearer {OTHER}"},
        {"X-API-Key": KEY},
    ],
)
def test_a_valid_key_in_a_header_grants_access_to_every_route(live, headers):
    assert names(post(live, headers=headers)) == ["dog", "cat"]
    for path in ("/v1/models", "/metrics"):
        assert live.client.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"X-API-Key": ""},
        {"X-API-Key": f"{OTHER},{KEY}"},
        {"X-API-Key": "\xe9" * 16},
    ],
)
def test_a_missing_or_wrong_key_is_refused_with_the_expected_headers(live, device, headers):
    answer = post(live, headers=[(name, value.encode("latin-1")) for name, value in headers.items()])
    assert error(answer) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "X-API-Key" in answer.json()["error"]["message"]
    assert device.batches == []


def test_the_key_is_checked_before_the_body_and_before_admission(live, serve):
    assert error(post(live, b"no image")) == (401, "unauthorized")
    assert error(post(live, path="/v1/detect?conf=7")) == (401, "unauthorized")
    assert live.service.predictor.pending == 0


def test_each_protocol_accepts_the_key_where_its_clients_send_it(live):
    client, image = live.client, {"image": ("a.jpg", jpeg())}
    text = b64encode(jpeg()).decode()
    request = {"model_id": "pets", "image": {"type": "base64", "value": text}}
    for key, status in ((KEY, 200), ("wrong", 401), ("", 401)):
        answers = [
            client.post("/v1/vision/detection", files=image, data={"api_key": key}),
            client.post("/v1/vision/custom/pets", files=image, data={"api_key": key}),
            client.post("/v1/vision/custom/list", data={"api_key": key}),
            client.get("/model/registry", params={"api_key": key}),
            client.post("/model/add", json={"model_id": "pets", "api_key": key}),
            client.post("/infer/object_detection", json=request | {"api_key": key}),
            client.post("/pets/1", params={"api_key": key}, content=text),
            client.post("/predict", files=image, headers={"X-API-Key": key}),
            client.post("/", files=image, headers={"Authorization": f"Bearer {key}".strip()}),
        ]
        assert [answer.status_code for answer in answers] == [status] * len(answers), key


def test_a_request_without_a_key_gets_no_model_name(live):
    image = {"image": ("a.jpg", jpeg())}
    request = {"model_id": "dogs", "image": {"type": "base64", "value": ""}}
    for answer in (
        live.client.post("/v1/vision/custom/dogs", files=image),
        live.client.post("/infer/object_detection", json=request),
        live.client.post("/model/add", json={"model_id": "dogs"}),
        live.client.post("/dogs/1", content=b""),
        live.client.post("/api/models/dogs/predict", files=image),
    ):
        assert answer.status_code == 401
        assert "pets" not in answer.text


def test_keys_appear_in_no_log_line_and_in_no_metric(serve, caplog):
    live = serve(api_keys=(KEY,), access_log=True)
    with caplog.at_level(logging.DEBUG):
        post(live, headers={"X-API-Key": KEY})
        live.client.get("/model/registry", params={"api_key": KEY})
        live.client.post("/pets/1", params={"api_key": KEY}, content=b"no image")
        live.client.post("/v1/vision/detection", data={"api_key": KEY})
        live.client.post("/nowhere", params={"api_key": KEY})
        metrics = live.client.get("/metrics", headers={"X-API-Key": KEY}).text
    foreign = ("httpx", "httpcore", "uvicorn.access")  # the test client's, and one that `yolopard serve` disables
    records = [record for record in caplog.records if not record.name.startswith(foreign)]
    lines = [JsonLines().format(record) for record in records]
    assert len([line for line in lines if "yolopard.access" in line]) == 6
    assert KEY not in "".join(lines)
    assert KEY not in metrics


def test_openapi_has_a_security_scheme_only_if_keys_are_configured(serve):
    keyed, keyless = serve(api_keys=(KEY,)), serve()
    described = keyed.client.get("/openapi.json").json()
    assert described["components"]["securitySchemes"].keys() == {"HTTPBearer", "APIKeyHeader"}
    assert described["paths"]["/v1/detect"]["post"]["security"] == [{"HTTPBearer": []}, {"APIKeyHeader": []}]
    assert "security" not in described["paths"]["/healthz"]["get"]
    assert "securitySchemes" not in keyless.client.get("/openapi.json").json().get("components", {})


# PROTOCOLS


@pytest.mark.parametrize("off", ROUTERS)
def test_a_disabled_protocol_has_no_routes_and_the_others_keep_theirs(serve, off):
    live = serve(protocols=tuple(name for name in ROUTERS if name != off))
    described = orjson.loads(live.client.get("/openapi.json").content)["paths"]
    for name, module in ROUTERS.items():
        paths = {route.path.replace(":int", "") for route in module.routes(live.service).routes}
        assert paths & described.keys() == (set() if name == off else paths)
    for method, path in every_route(live.service, ROUTERS[off]):
        assert live.client.request(method, path, content=jpeg()).status_code in (404, 405)
    assert live.client.get("/").status_code == (405 if off == "v1" else 200)


# CORS


def test_a_cross_origin_page_is_allowed_only_if_its_origin_is_configured(serve):
    origin, other = "https://app.example", "https://evil.example"
    closed, opened = serve(), serve(cors_origins=(origin,), api_keys=(KEY,))
    cors = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    assert "access-control-allow-origin" not in post(closed, headers={"Origin": origin}).headers
    assert closed.client.options("/v1/detect", headers=cors).status_code == 405
    allowed = opened.client.options("/v1/detect", headers=cors)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, origin)
    assert "x-api-key" in allowed.headers["access-control-allow-headers"]
    assert opened.client.options("/v1/detect", headers=cors | {"Origin": other}).status_code == 400
    answered = post(opened, headers={"Origin": origin, "X-API-Key": KEY})
    assert answered.headers["access-control-allow-origin"] == origin
    assert "Server-Timing" in answered.headers["access-control-expose-headers"]
    refused = post(opened, headers={"Origin": other, "X-API-Key": KEY})
    assert "access-control-allow-origin" not in refused.headers
