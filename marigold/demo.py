"""A page to try images on: drop one, choose what the recipe uses, see its depth, turn its mesh, take the files.

A Space's app.py:

    from marigold import MarigoldDepth, demo
    demo.build_page(MarigoldDepth.from_pretrained("ORG/NAME")).launch()
"""

import html
import importlib.util
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from accelerate import PartialState
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from marigold.config import ConfigError, to_dataclass
from marigold.model.pipeline import MarigoldDepth
from marigold.model.settings import Sampling
from marigold.pictures import SUFFIXES, find_pictures, read_picture
from marigold.precision import PRECISIONS
from marigold.prediction_files import KINDS, Job, PointCloud, plan, write
from marigold.training.recipe import named_switches
from marigold.types import Prediction
from marigold.visualization import ERROR_COLOURS, colour

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
import gradio as gr

ABOUT = """# Depth of one image
Near is red and far is blue. The depth is right up to one unknown scale and shift: the mesh stands between two assumed
distances."""
KEPT = (600, 3600)  # seconds: how often old files are deleted while the page is served, and how old those are
MOST_EXAMPLES = 8
# Photographs that scikit-image (the extra `samples`) carries in its wheel.
SAMPLES = ("motorcycle_left.png", "astronaut.png", "chelsea.png", "coffee.png")
SHOWN = ("colour", "mesh")  # the kinds of file that the page itself shows


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for; `processing_resolution` bounds the longest edge, of an image in its own size too."""

    megabytes: float = 20.0
    megapixels: float = 16.0
    steps: int = 50
    members: int = 20
    processing_resolution: int = 1536


@dataclass(frozen=True)
class DemoConfig:
    """Everything in configs/demo.yaml."""

    checkpoint: str
    revision: str | None
    recipe: str | None
    host: str
    port: int
    examples: str | None
    limits: Limits
    point_cloud: PointCloud
    precision: str
    device: str | None

    def __post_init__(self) -> None:
        """Refuse what could only fail later; raises ConfigError."""
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")


def serve(config: DictConfig) -> None:
    """Serve the page as configured until SIGINT or SIGTERM; raises ValueError or OSError with a message."""
    settings = to_dataclass(DemoConfig, config)
    precision, switches = PRECISIONS[settings.precision], named_switches(settings.recipe)
    examples = sample_photographs() if settings.examples is None else list(find_pictures(settings.examples))
    model = MarigoldDepth.from_pretrained(settings.checkpoint, precision, settings.revision, switches)
    model.to(settings.device or PartialState().device)
    page = build_page(model, settings.limits, settings.point_cloud, examples[:MOST_EXAMPLES])
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    _, url, _ = page.launch(
        server_name=settings.host,
        server_port=settings.port,
        share=False,
        max_file_size=f"{settings.limits.megabytes * 1e6:.0f}b",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        prevent_thread_lock=True,
        quiet=True,
    )
    print(f"{settings.checkpoint}: {url}", flush=True)
    stopped.wait()
    page.close(verbose=False)


def sample_photographs() -> list[Path]:
    """Photographs that come with scikit-image, if it is installed."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        return []
    files = [Path(package.origin).parent / "data" / name for name in SAMPLES]
    return [file for file in files if file.is_file()]


def build_page(
    model: MarigoldDepth,
    limits: Limits | None = None,
    assumed: PointCloud | None = None,
    examples: Sequence[Path] = (),
) -> gr.Blocks:
    """The page of `model`, to `launch()`; `examples` are image files to click on."""
    return Page(model, limits or Limits(), assumed or PointCloud(60.0, 1.0, 4.0), examples).blocks


class Page:
    """The components of the page, and what happens on each event."""

    def __init__(self, model: MarigoldDepth, limits: Limits, assumed: PointCloud, examples: Sequence[Path]) -> None:
        self.model, self.limits, self.assumed = model, limits, assumed
        with gr.Blocks(title="Marigold", delete_cache=KEPT, analytics_enabled=False) as self.blocks:
            gr.Markdown(ABOUT)
            with gr.Row():
                with gr.Column(scale=1):
                    self.source = gr.File(
                        label="Drop an image", file_types=sorted(SUFFIXES), height=120, elem_id="source"
                    )
                    self._offer(examples)
                    with gr.Row():
                        self.settings = self._settings()
                    optional = [kind for kind in KINDS if kind not in SHOWN]
                    self.wanted = gr.CheckboxGroup(optional, value=["npy", "png"], label="Files to download")
                    start = gr.Button("Predict", variant="primary")
                with gr.Column(scale=2):
                    self.slider = gr.ImageSlider(
                        label="Image | depth", format="jpeg", interactive=False, elem_id="slider"
                    )
                    self.mesh = gr.Model3D(label="Mesh", interactive=False, height=420, elem_id="mesh")
                    self.spread = gr.Image(label="Uncertainty", format="png", interactive=False, visible=False)
                    with gr.Row():
                        self.downloads = {kind: gr.DownloadButton(visible=False, size="sm") for kind in KINDS}
            results = [self.slider, self.mesh, self.spread, *self.downloads.values()]
            self.source.change(self.look, self.source, results, api_visibility="private")
            inputs = {self.source, self.wanted, *self.settings.values()}
            start.click(self.predict, inputs, results, api_visibility="private")

    def _offer(self, examples: Sequence[Path]) -> None:
        if examples:
            samples = [[str(path)] for path in examples]
            shown = gr.Dataset(label="Examples", components=[gr.Image(render=False)], samples=samples, type="index")
            shown.click(lambda index: samples[index][0], shown, self.source, api_visibility="private")

    def _settings(self) -> dict[str, gr.Number]:
        """A field for each argument of a call that the recipe has a use for, by the argument's name."""
        switches, limits = self.model.switches, self.limits
        fields = {}
        if not switches.one_pass:
            fields["steps"] = ("Steps", self.model.default_steps, 1, limits.steps)
        if not switches.silent:
            fields["ensemble_size"] = ("Members", 1, 1, limits.members)
            fields["seed"] = ("Seed", 0, 0, 2**32 - 1)
        recommended = self.model.settings.default_processing_resolution
        label = "Longest edge in the model (px, 0: the image's own)"
        fields["processing_resolution"] = (label, recommended, 0, limits.processing_resolution)
        return {
            name: gr.Number(value, label=label, precision=0, minimum=low, maximum=high, elem_id=name, min_width=100)
            for name, (label, value, low, high) in fields.items()
        }

    def look(self, file: str | None) -> dict[Any, Any]:
        """A new image: show it, or say why not; what came of the last one goes."""
        photo = None if file is None else _eight_bits(self._read(file))
        return {
            self.slider: None if photo is None else (photo, photo),
            self.mesh: None,
            self.spread: gr.Image(None, visible=False),
            **{button: gr.DownloadButton(visible=False) for button in self.downloads.values()},
        }

    def predict(self, values: dict[Any, Any], progress: gr.Progress = gr.Progress()) -> dict[Any, Any]:  # noqa: B008
        """Predict as chosen, write the files as infer.py does, and show them."""
        file = values[self.source]
        if file is None:
            raise gr.Error("Drop an image first.", print_exception=False)
        image = self._read(file)
        chosen = {name: values[field] for name, field in self.settings.items() if values[field] is not None}
        seed = chosen.pop("seed", 0)
        try:
            prediction = self._predict(image, Sampling(**chosen), seed, progress)
            progress(None, desc="writing the files")
            job = self._write(file, image, prediction, [*SHOWN, *values[self.wanted]])
        except ValueError as error:
            _refuse(error, file)
        return self._show(image, prediction, job)

    def _read(self, file: str) -> Float[Tensor, "3 H W"]:
        try:
            if (megabytes := Path(file).stat().st_size / 1e6) > self.limits.megabytes:
                raise ValueError(f"{file}: {megabytes:.1f} MB; at most {self.limits.megabytes:g} are taken")
            return read_picture(file, round(self.limits.megapixels * 1e6))
        except ValueError as error:
            _refuse(error, file)

    def _predict(self, image: Tensor, sampling: Sampling, seed: int, progress: gr.Progress) -> Prediction:
        longest = sampling.processing_resolution
        if longest is None:
            longest = self.model.settings.default_processing_resolution
        if (longest or max(image.shape)) > self.limits.processing_resolution:
            raise ValueError(
                f"an image of {longest or max(image.shape)} px in the model; at most "
                f"{self.limits.processing_resolution} are taken: choose a smaller longest edge"
            )
        total, done = (sampling.steps or self.model.default_steps or 1) * sampling.ensemble_size, 0

        def on_step(members: int) -> None:
            nonlocal done
            done += members
            progress((min(done, total), total), desc="denoising", unit="steps")

        progress((0, total), desc="encoding", unit="steps")
        return self.model(image[None], seed=seed, on_step=on_step, **sampling.arguments())

    def _write(self, file: str, image: Tensor, prediction: Prediction, kinds: Sequence[str]) -> Job:
        # Files in gradio's own folder are served from where they are and deleted with the rest.
        folder = Path(tempfile.mkdtemp(dir=self.source.GRADIO_CACHE))
        (job,) = plan(file, folder, [kind for kind in KINDS if kind in kinds])
        write(job, image, prediction, self.assumed)
        return job

    def _show(self, image: Tensor, prediction: Prediction, job: Job) -> dict[Any, Any]:
        spread = None
        if prediction.uncertainty is not None:
            values = prediction.uncertainty[0, 0].cpu().numpy()
            largest = float(values.max())
            label = f"Uncertainty: the members' spread, black 0, yellow {largest:.3g} of the depth's range"
            spread = gr.Image(colour(values, 0, largest, colours=ERROR_COLOURS), label=label, visible=True)
        return {
            self.slider: (_eight_bits(image), str(job.files["colour"])),
            self.mesh: str(job.files["mesh"]) if "mesh" in job.files else None,
            self.spread: spread or gr.Image(None, visible=False),
            **{
                button: gr.DownloadButton(f"{path.parent.name}/{path.name}", str(path), visible=True)
                if (path := job.files.get(kind))
                else gr.DownloadButton(visible=False)
                for kind, button in self.downloads.items()
            },
        }


def _eight_bits(image: Float[Tensor, "3 H W"]) -> np.ndarray:
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


def _refuse(error: ValueError, file: str) -> NoReturn:
    """Say on the page what was wrong, by the image's name instead of its place on this machine."""
    message = str(error).replace(file, Path(file).name)
    raise gr.Error(html.escape(message), print_exception=False) from error
