"""The page in a real browser, served by the documented command; no request leaves the machine."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from playwright.sync_api import ConsoleMessage, Locator, Page, sync_playwright

from marigold import infer

ROOT = Path(__file__).parent.parent.parent
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
        said = self.process.stdout.readline()
        assert self.url in said, said

    def get(self, path: str, data: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        """Status and body of a request as it stands, with nothing in its path resolved."""
        request = urllib.request.Request(f"{self.url}/{path}", data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def send(self, file: Path) -> tuple[int, bytes]:
        """Upload a file as a browser does; the answer says where the server has put it."""
        head = f'--cut\r\nContent-Disposition: form-data; name="files"; filename="{file.name}"\r\n\r\n'
        body = head.encode() + file.read_bytes() + b"\r\n--cut--\r\n"
        return self.get("gradio_api/upload", body, "multipart/form-data; boundary=cut")

    def happens(self, event: int, data: list[Any]) -> bool:
        """Whether an event of the page succeeds with these inputs."""
        session = uuid.uuid4().hex
        body = {"data": data, "fn_index": event, "session_hash": session, "event_data": None}
        assert self.get("gradio_api/queue/join", json.dumps(body).encode())[0] == 200
        said = self.get(f"gradio_api/queue/data?session_hash={session}")[1].decode()
        messages = [json.loads(line.removeprefix("data:")) for line in said.splitlines() if line.startswith("data:")]
        (completed,) = [message for message in messages if message["msg"] == "process_completed"]
        return completed["success"]

    def stop(self) -> int:
        """As Ctrl-C; returns the exit code."""
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
    """The page in chromium, and what the browser asked for and complained about."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.requests, self.complaints = page, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", self.heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.set_default_timeout(3 * MINUTE)
        page.goto(url)
        page.get_by_role("button", name="Predict").wait_for()

    def heard(self, said: ConsoleMessage) -> None:
        """A line of the console, kept if it is an error."""
        if said.type == "error":
            self.complaints.append(f"{said.text} {said.location['url']}")

    def drop(self, *files: Path) -> None:
        """Put a file on the drop zone, in place of the last one."""
        zone = self.page.locator("#source input[type=file]")
        if not zone.count():
            self.page.locator("#source").get_by_label("Clear").click()
        zone.set_input_files(files)

    def predict(self) -> None:
        self.page.get_by_role("button", name="Predict").click()

    def download(self, name: str, to: Path) -> bytes:
        """What is behind the button `name`."""
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
    """A landscape photo with an EXIF tag that turns it upright, and a name with a blank."""
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = tmp_path_factory.mktemp("photos") / "my photo.jpg"
    Image.fromarray(values).resize((96, 64), Image.Resampling.BICUBIC).save(path, exif=exif)
    return path


def inferred(photo: Path, checkpoint: Path, output: Path, *overrides: str) -> None:
    """What infer.py writes of a photo."""
    given = [f"input='{photo}'", f"output={output}", f"checkpoint={checkpoint}", "device=cpu"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        assert infer.run(compose("infer", overrides=[*given, *overrides]))


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
    page = visit.page
    frame = page.locator("#slider")
    frame.scroll_into_view_if_needed()
    both = frame.locator("img")
    assert both.count() == 2
    assert both.nth(0).evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 96]
    box = frame.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before = frame.screenshot()
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 20, middle[1], steps=5)
    page.mouse.up()
    assert frame.screenshot() != before


def test_the_mesh_turns(visit: Visit, tmp_path: Path):
    page = visit.page
    canvas = page.locator("#mesh canvas")
    canvas.scroll_into_view_if_needed()
    before = seen(canvas)
    assert len(np.unique(before.reshape(-1, before.shape[-1]), axis=0)) > 100  # the photo's colours, not a bare ground
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 3, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)
    assert (seen(canvas) != before).any()


def test_clicked_points_and_their_metres_give_what_infer_writes(
    visit: Visit, photo: Path, checkpoint: Path, tmp_path: Path
):
    page = visit.page
    shown, places = page.locator("#points img"), []
    for number, (right, down) in enumerate([(16, 24), (48, 72)]):
        shown.scroll_into_view_if_needed()
        box = shown.bounding_box()
        # The image stands in the middle of its box, at most in its own size.
        size = shown.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        scale = min(box["width"] / size[0], box["height"] / size[1], 1)
        x, y = (box[side] + box[length] / 2 for side, length in (("x", "width"), ("y", "height")))
        # The image is enlarged three times, so this is the middle of a pixel of its own.
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


def test_a_broken_image_gets_a_message_and_the_page_lives_on(visit: Visit, photo: Path, tmp_path: Path):
    page, broken, huge = visit.page, tmp_path / "broken.png", tmp_path / "huge.png"
    broken.write_bytes(photo.read_bytes()[:300])
    Image.new("RGB", (1001, 1000)).save(huge)
    for file in (broken, huge):
        visit.drop(file)
        toast = page.get_by_text(re.compile(rf"{file.name}: cannot be read"))
        toast.wait_for()
        assert str(tmp_path) not in toast.inner_text()
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(bytes(2_100_000))
    visit.drop(heavy)
    page.get_by_text("maximum allowed size").wait_for()
    page.locator("#source input[type=file]").wait_for(state="attached")  # the zone is free again
    visit.drop(photo)
    visit.predict()
    page.get_by_role("button", name="depth_png/my photo.png").wait_for()


def test_an_example_is_an_image_like_any_other(visit: Visit):
    visit.page.locator("button.gallery-item").first.click()
    visit.page.locator("#source", has_text="motorcycle_left").wait_for()
    visit.predict()
    visit.page.get_by_role("button", name="depth_png/motorcycle_left.png").wait_for()


def test_nothing_left_the_machine_and_nobody_complained(served: Served, visit: Visit):
    assert not [url for url in visit.requests if not url.startswith((served.url, "data:", "blob:"))]
    assert served.tried.read_text() == ""
    # Babylon asks for WebGPU once and then takes WebGL.
    # A small upload is over before gradio's script asks how far it is, which it reports as "Response".
    # Its viewer may draw one more frame of a mesh that has just been taken away: null's postProcessManager.
    allowed = re.compile("webgpu|upload_progress|^Response |postProcessManager", re.IGNORECASE)
    assert [said for said in visit.complaints if not allowed.search(said)] == []


def test_a_heavy_file_is_refused_by_the_server_too(served: Served, tmp_path: Path):
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(bytes(2_100_000))
    assert served.send(heavy)[0] == 413


@pytest.mark.parametrize(
    "path", ["/etc/passwd", f"{ROOT}/pyproject.toml", "../../../../etc/passwd", "/proc/self/environ"]
)
def test_no_file_of_the_machine_can_be_fetched(served: Served, path: str):
    for place in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "theme.css/", ""):
        status, body = served.get(f"{place}{path}")
        assert status in (403, 404, 405), place
        assert b"root:" not in body


def test_an_event_reads_no_file_that_was_not_uploaded(served: Served, photo: Path):
    """The page's own events with the name of an image on this machine, as no browser would send them."""
    config = json.loads(served.get("config")[1])
    components = {part["id"]: part for part in config["components"]}
    tried = 0
    for event in config["dependencies"]:
        kinds = [components[number]["type"] for number in event["inputs"]]
        if "file" in kinds:
            values = [components[number]["props"].get("value") for number in event["inputs"]]
            tried += 1
            for path, succeeds in ((json.loads(served.send(photo)[1])[0], True), (str(photo), False)):
                file = {"path": path, "orig_name": photo.name, "meta": {"_type": "gradio.FileData"}}
                data = [file if kind == "file" else value for kind, value in zip(kinds, values, strict=True)]
                assert served.happens(event["id"], data) == succeeds, path
    assert tried >= 2


def test_what_was_uploaded_goes_with_the_server(served: Served):
    """The last test of the server."""
    (own,) = served.temporary.glob("marigold-demo-*")
    assert any(own.rglob("my photo.jpg"))
    assert served.stop() == 0
    assert not list(served.temporary.iterdir())


def seen(canvas: Locator) -> np.ndarray:
    """What a canvas shows, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"))


def draw(checkpoint: Path, image: Path, to: Path) -> None:
    """What the page looks like with a prediction, for docs/demo.md."""
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
        shot = Image.open(io.BytesIO(visit.page.screenshot(full_page=True)))
        shot.quantize(256).save(to, optimize=True)
        browser.close()
        served.stop()


if __name__ == "__main__":  # python tests/demo/test_page.py DIR IMAGE docs/images/page.png
    draw(*map(Path, sys.argv[1:]))
