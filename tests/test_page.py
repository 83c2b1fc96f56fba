"""The web page at / and /docs, in headless Chromium against the real server and the demo model."""

import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from app.builder import SAMPLES

CHROMIUM = shutil.which("chromium")
OFFLINE = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SAMPLE = SAMPLES / "scene-1.jpg"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, demo):
    """A fresh page of the server; in the end no script has failed and no request has left the host."""
    context = browser.new_context(base_url=demo.url, viewport={"width": 1200, "height": 800})
    page = context.new_page()
    asked, failures = [], []
    page.on("request", lambda request: asked.append(urlsplit(request.url)))
    page.on("pageerror", lambda error: failures.append(error))  # noqa: PLW0108
    yield page
    context.close()
    assert failures == []
    assert {url.netloc for url in asked if url.scheme not in ("data", "blob")} == {f"127.0.0.1:{demo.port}"}


def choose(page: Page, file: Path | dict = SAMPLE) -> None:
    page.goto("/")
    expect(page.locator("#status")).to_have_text("Ready. Choose a picture.")
    page.set_input_files("#file", file)


def boxes_of(page: Page) -> int:
    return page.locator("#boxes rect.box").count()


def expected(demo, **query) -> list[dict]:
    answer = demo.client.post("/v1/detect", content=SAMPLE.read_bytes(), params=query)
    return answer.json()["images"][0]["results"]


def test_chosen_picture_shows_its_boxes_with_their_labels(page, demo):
    choose(page)
    results = expected(demo)
    expect(page.locator("#boxes rect.box")).to_have_count(len(results))
    labels = page.locator("#boxes text").all_text_contents()
    assert sorted(labels) == sorted(f"{found['name']} {found['confidence']:.2f}" for found in results)
    expect(page.locator("#status")).to_have_text(f"{len(results)} objects in 640 by 480 px")


def test_boxes_lie_where_the_objects_are_on_the_screen(page, demo):
    choose(page)
    best = expected(demo)[0]["box"]
    expect(page.locator("#boxes rect.box").last).to_be_attached()
    picture = page.locator("#picture").bounding_box()
    drawn = page.locator("#boxes rect.box").last.bounding_box()  # the best is drawn last
    scale = picture["width"] / 640
    assert drawn["x"] - picture["x"] == pytest.approx(best["x1"] * scale, abs=2)
    assert drawn["y"] - picture["y"] == pytest.approx(best["y1"] * scale, abs=2)
    assert drawn["width"] == pytest.approx((best["x2"] - best["x1"]) * scale, abs=3)


def test_sliders_ask_again_with_their_thresholds(page, demo):
    choose(page)
    expect(page.locator("#boxes rect.box")).to_have_count(len(expected(demo)))
    page.locator("#conf").fill("0.95")
    strong = expected(demo, conf=0.95)
    assert len(strong) < len(expected(demo))
    expect(page.locator("#boxes rect.box")).to_have_count(len(strong))
    page.locator("#conf").fill("0.25")
    page.locator("#max_det").fill("2")
    expect(page.locator("#boxes rect.box")).to_have_count(2)


def test_unchecked_class_disappears_and_counts_follow(page, demo):
    choose(page)
    results = expected(demo)
    first = results[0]
    kept = [found for found in results if found["class"] != first["class"]]
    expect(page.locator(f"#count-{first['class']}")).to_have_text(str(len(results) - len(kept)))
    page.locator(f"#classes input[value='{first['class']}']").uncheck()
    expect(page.locator("#boxes rect.box")).to_have_count(len(kept))
    expect(page.locator(f"#count-{first['class']}")).to_have_text("")


def test_no_class_at_all_is_not_all_classes(page):
    choose(page)
    expect(page.locator("#boxes rect.box").first).to_be_attached()
    for box in page.locator("#classes input").all():
        box.uncheck()
    expect(page.locator("#boxes rect.box")).to_have_count(0)
    expect(page.locator("#status")).to_have_text("No class is chosen.")


def test_time_is_told_by_stage_with_the_batch_size(page):
    choose(page)
    expect(page.locator("#timing")).to_be_visible()
    text = page.locator("#stages").inner_text()
    for stage in ("decode", "queue", "infer", "postprocess", "transport"):
        assert stage in text
    assert "in a batch of 1" in text


def test_broken_file_shows_the_servers_words(page):
    choose(page, {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff broken"})
    expect(page.locator("#status")).to_contain_text("cannot be decoded")
    expect(page.locator("#status")).to_have_class("bad")
    page.set_input_files("#file", SAMPLE)
    expect(page.locator("#boxes rect.box").first).to_be_attached()


def test_progress_is_shown_until_the_server_is_ready(page):
    state = {"phase": "engine", "step": 3, "of": 6, "model": "m"}
    page.route("**/readyz", lambda route: route.fulfill(status=503, body=json.dumps(state)), times=1)
    page.goto("/")
    expect(page.locator("#status")).to_have_text("The server is not ready: engine (3 of 6)")
    expect(page.locator("#status")).to_have_text("Ready. Choose a picture.")


def test_class_names_are_text_never_markup(page, demo):
    models = demo.client.get("/v1/models").json()
    models["models"][0]["names"]["0"] = "<img src=x onerror=alert(1)>"
    page.route("**/v1/models", lambda route: route.fulfill(body=json.dumps(models)))
    choose(page)
    assert page.locator("#classes img").count() == 0
    assert "<img src=x onerror=alert(1)>" in page.locator("#classes").inner_text()


def test_page_fits_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 740})
    choose(page)
    expect(page.locator("#boxes rect.box").first).to_be_attached()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_docs_show_the_operations_without_the_internet(page):
    page.goto("/docs")
    expect(page.locator("#operations-detect-detect_v1_detect_post")).to_be_visible()
    expect(page.locator(".opblock")).to_have_count(5)
