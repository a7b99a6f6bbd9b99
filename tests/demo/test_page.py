"""The page in a real browser, served as documented; no request leaves the machine."""

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from marigold import infer

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"
)
MINUTE = 60_000  # milliseconds; two busy cores are slow
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


class Served:
    """The page of a checkpoint in a process of its own."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.temporary, self.tried = folder / "tmp", folder / "tried.txt"
        self.temporary.mkdir()
        self.tried.touch()
        environment = {**os.environ, "TMPDIR": str(self.temporary), "TRIED": str(self.tried), "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
        command = [sys.executable, str(ROOT / "scripts/demo.py"), f"checkpoint={checkpoint}", f"port={self.port}"]
        limits = ["limits.megapixels=1", "limits.megabytes=2", "device=cpu"]
        self.process = subprocess.Popen([*command, *limits], env=environment, stdout=subprocess.PIPE, text=True)
        printed = self.process.stdout.readline()
        assert self.url in printed, printed

    def status(self, path: str) -> int:
        """Of a request whose path is sent as it is."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("GET", f"/{path}")
            return connection.getresponse().status

    def send(self, file: Path) -> requests.Response:
        """Upload a file as a browser does; the response holds its name on the server."""
        return requests.post(f"{self.url}/gradio_api/upload", files={"files": (file.name, file.read_bytes())})

    def happens(self, event: int, data: list[Any]) -> bool:
        """Whether an event of the page succeeds with these inputs."""
        session = uuid.uuid4().hex
        body = {"data": data, "fn_index": event, "session_hash": session, "event_data": None}
        requests.post(f"{self.url}/gradio_api/queue/join", json=body).raise_for_status()
        stream = requests.get(f"{self.url}/gradio_api/queue/data?session_hash={session}").text
        messages = [json.loads(data) for data in re.findall(r"^data:(.*)", stream, re.MULTILINE)]
        (completed,) = [message for message in messages if message["msg"] == "process_completed"]
        return completed["success"]

    def stop(self) -> int:
        """Press Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        self.process.stdout.close()
        return self.process.wait(120)


@pytest.fixture(scope="module")
def served(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    one = Served(checkpoint, tmp_path_factory.mktemp("served"))
    yield one
    if one.process.poll() is None:
        one.stop()


class Visit:
    """The page in chromium, with the browser's requests and errors."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.requests, self.console, self.errors = page, [], [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda entry: self.console.append(entry))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.set_default_timeout(3 * MINUTE)
        page.goto(url)
        page.get_by_role("button", name="Predict").wait_for()

    def drop(self, file: Path) -> None:
        """Put a file on the drop zone, in place of the last one."""
        zone = self.page.locator("#source input[type=file]")
        if not zone.count():
            self.page.locator("#source").get_by_label("Clear").click()
        zone.set_input_files(file)

    def drag(self, part: Locator, right: float, down: float) -> None:
        """Drag from the middle of a part of the page, by pixels."""
        box = part.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + right, y + down, steps=5)
        self.page.mouse.up()

    def predict(self) -> None:
        self.page.get_by_role("button", name="Predict").click()

    def download(self, name: str, to: Path) -> bytes:
        """The file behind the button `name`."""
        with self.page.expect_download() as started:
            self.page.get_by_role("button", name=name).click()
        assert started.value.suggested_filename == Path(name).name
        started.value.save_as(to)
        return to.read_bytes()


@pytest.fixture(scope="module")
def visit(served: Served) -> Iterator[Visit]:
    if not CHROMIUM.exists():
        pytest.skip("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield Visit(browser.new_page(viewport={"width": 1280, "height": 1500}), served.url)
        browser.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A landscape image with an EXIF tag that turns it upright, and a name with a blank."""
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = tmp_path_factory.mktemp("photos") / "my photo.jpg"
    Image.fromarray(values).resize((96, 64), Image.Resampling.BICUBIC).save(path, exif=exif)
    return path


def inferred(photo: Path, checkpoint: Path, output: Path, *overrides: str) -> None:
    """Write what infer.py writes for an image."""
    from runs import composed  # not on the path of `draw`

    given = [f"input='{photo}'", f"output={output}", f"checkpoint={checkpoint}", "device=cpu"]
    assert infer.run(composed("infer", *given, *overrides))


def test_a_prediction_and_the_files_that_infer_writes(
    served: Served, visit: Visit, photo: Path, checkpoint: Path, tmp_path: Path
):
    page = visit.page
    visit.drop(photo)
    for field, value in (("Members", "2"), ("Steps", "2"), ("Seed", "5")):
        page.get_by_label(field).fill(value)
    page.get_by_label("uncertainty").check()
    visit.predict()
    page.get_by_role("button", name="depth_png/my photo.png").wait_for()
    written = ["save.uncertainty=true", "save.mesh=true", "sampler.ensemble_size=2", "sampler.steps=2", "seed=5"]
    inferred(photo, checkpoint, tmp_path / "out", *written)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 5
    for file in files:
        name = file.relative_to(tmp_path / "out").as_posix()
        assert visit.download(name, tmp_path / "downloaded") == file.read_bytes(), name


def test_the_slider_uncovers_the_depth(visit: Visit):
    slider = visit.page.locator("#slider")
    slider.scroll_into_view_if_needed()
    assert slider.locator("img").count() == 2
    before = slider.screenshot()
    visit.drag(slider, 20, 0)
    assert slider.screenshot() != before


def test_the_mesh_turns(visit: Visit):
    canvas = visit.page.locator("#mesh canvas")
    canvas.scroll_into_view_if_needed()
    before = canvas.screenshot()
    shown = np.asarray(Image.open(io.BytesIO(before)).convert("RGB"))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 100  # the image's colours, not only the background
    visit.drag(canvas, -100, -60)
    visit.page.wait_for_timeout(1000)
    assert canvas.screenshot() != before


def test_clicked_points_and_their_metres_give_what_infer_writes(
    visit: Visit, photo: Path, checkpoint: Path, tmp_path: Path
):
    page = visit.page
    shown, places = page.locator("#points img"), []
    for number, (right, down) in enumerate([(16, 24), (48, 72)]):
        shown.scroll_into_view_if_needed()
        box = shown.bounding_box()
        # The image is centred in its box, at most at its own size.
        size = shown.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        scale = min(box["width"] / size[0], box["height"] / size[1], 1)
        x, y = (box[side] + box[length] / 2 for side, length in (("x", "width"), ("y", "height")))
        # The page enlarges it three times, so this is the centre of an original pixel.
        page.mouse.click(x + (3 * right + 1 - size[0] / 2) * scale, y + (3 * down + 1 - size[1] / 2) * scale)
        page.get_by_test_id(f"cell-{number}-0").get_by_text(re.compile(r"\d+")).wait_for()
        places.append([float(page.get_by_test_id(f"cell-{number}-{axis}").inner_text()) for axis in (0, 1)])
    for number, metres in enumerate(("1.5", "2.5")):
        cell = page.get_by_test_id(f"cell-{number}-2")
        cell.dblclick()
        cell.locator("textarea, input").fill(metres)
        page.keyboard.press("Escape" if number else "Tab")
    page.get_by_role("button", name="To metres").click()
    page.locator("#metres", has_text=" m; expected error").wait_for()
    rows = [f"{x:g},{y:g},{metres}" for (x, y), metres in zip(places, ("1.5", "2.5"), strict=True)]
    (tmp_path / "points").mkdir()
    (tmp_path / "points/my photo.csv").write_text("\n".join(["x,y,metres", *rows]))
    known = [f"points.from={tmp_path / 'points'}", "save.point_cloud=true", "sampler.ensemble_size=2", "seed=5"]
    inferred(photo, checkpoint, tmp_path / "out", *known, "sampler.steps=2")
    for name in ("point_cloud/my photo.ply", "depth_metres/my photo.npy"):
        assert visit.download(name, tmp_path / "downloaded") == (tmp_path / "out" / name).read_bytes(), name


def test_an_unreadable_image_gets_a_message_and_the_page_lives_on(visit: Visit, photo: Path, tmp_path: Path):
    page, broken, huge = visit.page, tmp_path / "broken.png", tmp_path / "huge.png"
    broken.write_bytes(photo.read_bytes()[:300])
    Image.new("RGB", (1001, 1000)).save(huge)
    for file in (broken, huge):
        visit.drop(file)
        toast = page.get_by_text(re.compile(rf"{file.name}: cannot be read"))
        toast.wait_for()
        assert str(tmp_path) not in toast.inner_text()
    visit.drop(photo)
    visit.predict()
    page.get_by_role("button", name="depth_png/my photo.png").wait_for()


def test_an_example_is_an_image_like_any_other(visit: Visit):
    visit.page.locator("button.gallery-item").first.click()
    visit.page.locator("#source", has_text="motorcycle_left").wait_for()
    visit.predict()
    visit.page.get_by_role("button", name="depth_png/motorcycle_left.png").wait_for()


def test_nothing_left_the_machine_and_the_console_has_no_errors(served: Served, visit: Visit):
    assert not [url for url in visit.requests if not url.startswith((served.url, "data:", "blob:"))]
    assert served.tried.read_text() == ""
    # Babylon asks for WebGPU once and then takes WebGL.
    # A small upload is over before gradio's script asks for its progress, which it reports as "Response".
    # Its viewer may draw one more frame of a mesh that has just been removed: null's postProcessManager.
    allowed = re.compile("webgpu|upload_progress|^Response |postProcessManager", re.IGNORECASE)
    logged = [f"{entry.text} {entry.location['url']}" for entry in visit.console if entry.type == "error"]
    assert [error for error in visit.errors + logged if not allowed.search(error)] == []


def test_a_heavy_file_is_refused(served: Served, tmp_path: Path):
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(bytes(2_100_000))
    assert served.send(heavy).status_code == 413


@pytest.mark.parametrize("path", ["/etc/passwd", f"{ROOT}/pyproject.toml", "../../../../etc/passwd"])
def test_no_file_of_the_machine_can_be_fetched(served: Served, path: str):
    for place in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "theme.css/", ""):
        assert served.status(f"{place}{path}") in (403, 404, 405), place


def test_an_event_reads_no_file_that_was_not_uploaded(served: Served, photo: Path):
    """The page's own events with the name of an image on this machine, which no browser would send."""
    config = requests.get(f"{served.url}/config").json()
    components = {part["id"]: part for part in config["components"]}
    tried = 0
    for event in config["dependencies"]:
        kinds = [components[number]["type"] for number in event["inputs"]]
        if "file" in kinds:
            values = [components[number]["props"].get("value") for number in event["inputs"]]
            tried += 1
            for path, succeeds in ((served.send(photo).json()[0], True), (str(photo), False)):
                file = {"path": path, "orig_name": photo.name, "meta": {"_type": "gradio.FileData"}}
                data = [file if kind == "file" else value for kind, value in zip(kinds, values, strict=True)]
                assert served.happens(event["id"], data) == succeeds, path
    assert tried >= 2


def test_what_was_uploaded_goes_with_the_server(served: Served):
    """The last test: it stops the server."""
    (own,) = served.temporary.glob("marigold-demo-*")
    assert any(own.rglob("my photo.jpg"))
    assert served.stop() == 0
    assert not list(served.temporary.iterdir())


def draw(checkpoint: Path, image: Path, to: Path) -> None:
    """Write a screenshot of the page with a prediction, for docs/demo.md."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        served = Served(checkpoint, Path(folder))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        visit = Visit(browser.new_page(viewport={"width": 1280, "height": 1180}), served.url)
        visit.drop(image)
        if (members := visit.page.get_by_label("Members")).count():
            members.fill("5")
        visit.predict()
        visit.page.get_by_role("button", name="depth_png/").wait_for()
        visit.page.locator("#mesh canvas").wait_for()
        visit.page.wait_for_timeout(10_000)
        Image.open(io.BytesIO(visit.page.screenshot(full_page=True))).quantize(256).save(to, optimize=True)
        browser.close()
        served.stop()


if __name__ == "__main__":  # python tests/demo/test_page.py DIR IMAGE docs/images/page.png
    draw(*map(Path, sys.argv[1:]))
