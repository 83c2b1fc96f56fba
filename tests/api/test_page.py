"""The web page at / and /docs, in headless Chromium against the real server and the demo model."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import cv2
import fakes
import pytest
import scenes
from conftest import serve_engine
from playwright.sync_api import Page, expect, sync_playwright

from app.backends import onnxruntime
from app.settings import DEMO
from app.vision.matching import MIN_VISIBILITY

CHROMIUM = shutil.which("chromium")
OFFLINE = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SAMPLE = DEMO / "samples" / "scene-1.jpg"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, demo):
    """A new page of the server. Fails the test if a script raised an error or a request left this host."""
    context = browser.new_context(base_url=demo.url, viewport={"width": 1200, "height": 800})
    page = context.new_page()
    requested, failures = [], []
    page.on("request", lambda request: requested.append(urlsplit(request.url)))
    page.on("pageerror", lambda error: failures.append(error))  # noqa: PLW0108
    yield page
    context.close()
    assert failures == []
    assert {url.netloc for url in requested if url.scheme not in ("data", "blob")} == {f"127.0.0.1:{demo.port}"}


def choose(page: Page, file: Path | dict = SAMPLE) -> None:
    page.goto("/")
    expect(page.locator("#empty")).to_be_visible()
    page.set_input_files("#file", file)


def boxes(page: Page):
    return page.locator("#boxes li")


def count(page: Page, class_id: int):
    return page.locator("#classes label", has=page.locator(f"input[value='{class_id}']")).locator("small")


def expected(demo, **query) -> list[dict]:
    answer = demo.client.post("/v1/detect", content=SAMPLE.read_bytes(), params=query)
    return answer.json()["images"][0]["results"]


def test_a_chosen_image_shows_its_boxes_with_labels(page, demo):
    choose(page)
    results = expected(demo)
    expect(boxes(page)).to_have_count(len(results))
    labels = page.locator("#boxes span").all_text_contents()
    assert labels == [f"{found['name']} {round(found['confidence'] * 100)} %" for found in results]
    expect(page.locator("#found")).to_have_text(f"{len(results)} boxes")
    expect(page.locator("#file-name")).to_contain_text("scene-1.jpg")


def test_boxes_are_drawn_over_the_objects_on_the_screen(page, demo):
    choose(page)
    for i, found in enumerate(expected(demo)):
        expect(boxes(page).nth(i)).to_be_attached()
        image, drawn = page.locator("figure img").bounding_box(), boxes(page).nth(i).bounding_box()
        scale, box = image["width"] / 640, found["box"]
        assert drawn["x"] - image["x"] == pytest.approx(box["x1"] * scale, abs=2)
        assert drawn["y"] - image["y"] == pytest.approx(box["y1"] * scale, abs=2)
        assert drawn["width"] == pytest.approx((box["x2"] - box["x1"]) * scale, abs=2)
        assert drawn["height"] == pytest.approx((box["y2"] - box["y1"]) * scale, abs=2)


def test_changing_a_threshold_sends_a_new_request(page, demo):
    choose(page)
    expect(boxes(page)).to_have_count(len(expected(demo)))
    page.locator("#conf").fill("0.95")
    strong = expected(demo, conf=0.95)
    assert 0 < len(strong) < len(expected(demo))
    expect(boxes(page)).to_have_count(len(strong))
    page.locator("#conf").fill("0.25")
    page.locator("#max_det").fill("2")
    expect(boxes(page)).to_have_count(2)


def test_an_unchecked_class_disappears_and_the_counts_are_updated(page, demo):
    choose(page)
    results = expected(demo)
    first = results[0]["class"]
    kept = [found for found in results if found["class"] != first]
    expect(count(page, first)).to_have_text(str(len(results) - len(kept)))
    page.locator(f"#classes input[value='{first}']").uncheck()
    expect(boxes(page)).to_have_count(len(kept))
    expect(count(page, first)).to_have_text("off")


def test_with_no_class_chosen_no_box_is_shown(page, demo):
    choose(page)
    expect(boxes(page)).to_have_count(len(expected(demo)))
    page.locator("#none").click()
    expect(boxes(page)).to_have_count(0)
    expect(page.locator("#found")).to_have_text("No class is chosen")
    page.locator("#all").click()
    expect(boxes(page)).to_have_count(len(expected(demo)))


def test_the_time_of_each_stage_is_shown(page):
    choose(page)
    expect(page.locator("#spent")).to_be_visible()
    for stage in ("Decode", "Queue", "Inference", "Postprocess", "Network and rest"):
        expect(page.locator("#legend dt", has_text=stage)).to_be_visible()


def test_a_broken_file_shows_the_error_of_the_server_and_the_next_file_works(page):
    choose(page, {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"\xff\xd8\xff broken"})
    expect(page.locator("#error strong")).to_contain_text("cannot be decoded")
    expect(page.locator("#error small")).to_contain_text("undecodable_image (422)")
    page.set_input_files("#file", SAMPLE)
    expect(boxes(page).first).to_be_attached()
    expect(page.locator("#error")).to_be_hidden()


def test_progress_is_shown_until_the_server_is_ready(page):
    state = {"phase": "engine", "step": 3, "of": 6, "model": "m"}
    page.route("**/readyz", lambda route: route.fulfill(status=503, body=json.dumps(state)), times=1)
    page.goto("/")
    expect(page.locator("#start p")).to_have_text("Preparing m")
    expect(page.locator("#start small")).to_have_text("engine, step 3 of 6")
    expect(page.locator("#empty")).to_be_visible()


def test_class_names_are_shown_as_text_and_not_as_markup(page, demo):
    models = demo.client.get("/v1/models").json()
    models["models"][0]["names"]["0"] = "<img src=x onerror=alert(1)>"
    page.route("**/v1/models", lambda route: route.fulfill(body=json.dumps(models)))
    choose(page)
    assert page.locator("#classes img").count() == 0
    expect(page.locator("#classes")).to_contain_text("<img src=x onerror=alert(1)>")


def test_the_content_security_policy_blocks_inline_scripts(page):
    page.goto("/")
    expect(page.locator("#empty")).to_be_visible()
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    assert page.evaluate("window.ran") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    choose(page)
    expect(boxes(page).first).to_be_attached()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (ground == "rgb(247, 245, 241)") == (scheme == "light")


@pytest.fixture(scope="module", params=["segment", "pose", "obb", "classify"])
def shown(request, browser, of_task, tmp_path_factory):
    """The results of a task's demo model for one image, and the page that shows them."""
    made, task = of_task(request.param), request.param
    image = scenes.crop(900_000)[0] if task == "classify" else scenes.scene(900_000, 320, 240, task).image
    file = tmp_path_factory.mktemp("image") / "image.png"
    cv2.imwrite(str(file), image[..., ::-1])
    with serve_engine(onnxruntime.OnnxruntimeEngine(made.graph, 2), fakes.stored(model=made.model)) as live:
        answer = live.client.post("/v1/predict", params={"conf": 0.25}, content=file.read_bytes()).json()
        page = browser.new_page(base_url=live.url)
        choose(page, file)
        expect(boxes(page).first).to_be_attached()
        yield SimpleNamespace(task=task, page=page, results=answer["images"][0]["results"])
        page.close()


def points(path: str) -> list[tuple[float, float]]:
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.replace("h0", ""))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def outline(found: dict) -> list[tuple[float, float]]:
    """Return the points that the page draws for a result."""
    if "segments" in found:
        return list(zip(*found["segments"].values(), strict=True))
    if "keypoints" in found:
        keypoints = zip(*found["keypoints"].values(), strict=True)
        return [(x, y) for x, y, visible in keypoints if visible >= MIN_VISIBILITY]
    return [(found["box"][f"x{i}"], found["box"][f"y{i}"]) for i in range(1, 5)] if "box" in found else []


def test_masks_poses_and_rotated_boxes_are_drawn_point_by_point(shown):
    drawn = [path.get_attribute("d") for path in shown.page.locator("#boxes path").all()]
    assert shown.results
    assert [points(path) for path in drawn] == [outline(found) for found in shown.results]


def test_keypoints_below_min_visibility_are_not_drawn(page):
    page.goto("/")
    keypoints = {"x": [1, 2, 3], "y": [4, 5, 6], "visible": [MIN_VISIBILITY, MIN_VISIBILITY - 0.01, 1]}
    assert page.evaluate("found => shapeOf(found)", {"box": {}, "keypoints": keypoints}) == ["pose", "M1 4h0M3 6h0"]
    del keypoints["visible"]  # the model has no visibility
    assert page.evaluate("found => shapeOf(found)[1]", {"box": {}, "keypoints": keypoints}) == "M1 4h0M2 5h0M3 6h0"


def test_shapes_are_drawn_at_their_points_on_the_screen(shown):
    image = shown.page.locator("figure img")
    at = image.bounding_box()
    scale = at["width"] / image.evaluate("it => it.naturalWidth")
    for shape in shown.page.locator("#boxes svg").all():
        x, y, width, height = (scale * float(number) for number in shape.get_attribute("viewBox").split())
        assert shape.bounding_box() == pytest.approx(
            {"x": at["x"] + x, "y": at["y"] + y, "width": width, "height": height}, abs=2
        )


def test_thresholds_and_class_filter_are_hidden_for_classification(shown):
    for name in ("#knobs", "#filter"):
        expect(shown.page.locator(name)).to_be_visible(visible=shown.task != "classify")


def test_docs_try_out_a_detection_without_the_internet(page, demo):
    described = demo.client.get("/openapi.json").json()["paths"]
    page.goto("/docs")
    expect(page.locator(".opblock")).to_have_count(sum(map(len, described.values())))
    operation = page.locator("#operations-detect-detect_v1_detect_post")
    operation.locator(".opblock-summary-control").click()
    operation.locator("select[aria-label='Request content type']").select_option("image/*")
    operation.locator("input[type=file]").set_input_files(SAMPLE)
    operation.locator("button.execute").click()
    expect(operation.locator(".live-responses-table")).to_contain_text("yellow star")


def test_the_page_prompts_for_an_api_key_once_and_keeps_it(browser, serve):
    key = "key-of-the-tests-0"
    context = browser.new_context(base_url=serve(api_keys=(key,)).url)
    page = context.new_page()
    requested = []
    page.on("dialog", lambda dialog: requested.append(dialog.message) or dialog.accept(key))
    choose(page)
    expect(boxes(page)).to_have_count(2)
    page.reload()
    expect(page.locator("#model")).to_contain_text("pets")
    assert requested == ["This server requires an API key"]
    context.close()


def test_the_page_explains_what_to_do_if_no_key_is_entered(browser, serve):
    context = browser.new_context(base_url=serve(api_keys=("key-of-the-tests-0",)).url)
    page = context.new_page()
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.goto("/")
    expect(page.locator("#start small")).to_have_text("reload the page to enter an API key")
    context.close()
