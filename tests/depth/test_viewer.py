"""The page of points: what it holds, and in a real browser what it shows."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from marigold.depth.viewer import write_viewer
from marigold.pictures import read_picture
from marigold.types import Camera

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"
)


def page(path: Path, depth: torch.Tensor, image: torch.Tensor, **settings) -> str:
    with path.open("wb") as file:
        camera = Camera.centred(4.0, *depth.shape[1:])
        write_viewer(file, depth, camera, image, title="<b>&.jpg", unit="metres", **settings)
    return path.read_text()


def scene(text: str) -> dict:
    found = json.loads(re.search(r'<script id="scene" type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    for key, dtype in (("positions", "<f4"), ("colours", "u1")):
        found[key] = np.frombuffer(base64.b64decode(found[key]), dtype).reshape(found["count"], 3)
    return found


def test_the_page_holds_the_points_of_known_depth_and_asks_for_nothing(tmp_path):
    depth = torch.full((1, 2, 4), 2.0)
    depth[0, 0, 0] = 0
    image = torch.zeros(3, 2, 4)
    image[:, 1, 3] = torch.tensor([1.0, 0.5, 0.0])
    text = page(tmp_path / "a.html", depth, image)
    found = scene(text)
    assert found["count"] == 7
    np.testing.assert_array_equal(found["positions"][[0, -1]], [[-0.25, -0.25, 2], [0.75, 0.25, 2]])
    np.testing.assert_array_equal(found["colours"][-1], [255, 128, 0])
    assert "7 of 8 points, in metres" in text
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;.jpg" in text
    assert re.findall(r"""(?:src|href|data|srcset)=["']?([^"'\s>]*)""", text) == ["data:,"]
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import\(", text)
    assert "default-src 'none'" in text
    thinned = scene(page(tmp_path / "a.html", torch.full((1, 40, 60), 2.0), torch.rand(3, 40, 60), largest=600))
    assert (thinned["count"], thinned["stride"]) == (600, 2)
    with pytest.raises(ValueError, match="no points"):
        page(tmp_path / "a.html", torch.zeros(1, 2, 2), torch.zeros(3, 2, 2))


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs chromium")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_browser_shows_the_image_from_its_camera_and_turns_it(tmp_path):
    from playwright.sync_api import sync_playwright

    # A red half 2 m away beside a blue one 3 m away, as wide as the window.
    depth = torch.full((1, 60, 80), 2.0)
    depth[..., 40:] = 3
    image = torch.zeros(3, 60, 80)
    image[0, :, :40], image[2, :, 40:] = 1, 1
    page(tmp_path / "a.html", depth, image)

    def shown(view) -> np.ndarray:
        view.wait_for_timeout(300)
        view.screenshot(path=tmp_path / "shown.png")
        return read_picture(tmp_path / "shown.png").numpy()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        view = browser.new_page(viewport={"width": 400, "height": 300})
        requests, problems = [], []
        view.on("request", lambda request: requests.append(request.url))
        view.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.goto((tmp_path / "a.html").as_uri())
        first = shown(view)
        view.mouse.move(200, 100)
        view.mouse.down()
        view.mouse.move(320, 100, steps=4)
        view.mouse.up()
        turned = shown(view)
        view.mouse.dblclick(200, 100)
        back = shown(view)
        browser.close()
    assert (requests, problems) == ([(tmp_path / "a.html").as_uri()], [])
    np.testing.assert_array_equal(first[:, 20:200, 50], np.array([[1], [0], [0]]).repeat(180, 1))
    np.testing.assert_array_equal(first[:, 20:200, 350], np.array([[0], [0], [1]]).repeat(180, 1))
    assert np.abs(turned - first).mean() > 0.05
    np.testing.assert_array_equal(back, first)
