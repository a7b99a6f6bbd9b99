"""The demo page: drop an image, choose settings, view its depth and mesh, download the files."""

import html
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from marigold.depth.camera import CameraSettings
from marigold.depth.metric import MetricDepth, metric_depth
from marigold.model.pipeline import MarigoldDepth
from marigold.model.settings import Sampling
from marigold.pictures import SUFFIXES, eight_bits, read_picture
from marigold.prediction_files import KINDS, METRIC_KINDS, Distances, plan, write
from marigold.types import Prediction
from marigold.visualization import ERROR_COLOURS, colour

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
import gradio as gr

from marigold.page_points import PagePoints

Blocks = gr.Blocks  # for `demo`, which may not import gradio before this module has
ABOUT = """# Depth of one image
Near is red and far is blue. Depth is predicted up to an unknown scale and shift: the mesh lies between two assumed
distances until some distances are known."""
KEPT = (600, 3600)  # seconds: how often old files are deleted, and from what age
SHOWN = ("colour", "mesh")  # the kinds of file that the page displays
OFFERED = [kind for kind in KINDS if kind != "exr" or importlib.util.find_spec("OpenEXR")]


@dataclass(frozen=True)
class Limits:
    """Upper bounds for a visitor; `processing_resolution` also bounds an image that is processed at its own size."""

    megabytes: float = 20.0
    megapixels: float = 16.0
    steps: int = 50
    members: int = 20
    processing_resolution: int = 1536


class Page:
    """The page's components, `blocks`, and its event handlers; `launch()` takes STYLE as `css`."""

    # Enlarge small images, except the one that is clicked on: gradio ignores the enlargement in a click's coordinates.
    STYLE = "#spread img {width: 100%; height: 100%; object-fit: contain}"

    def __init__(
        self,
        model: MarigoldDepth,
        limits: Limits,
        camera: CameraSettings,
        distances: Distances,
        examples: Sequence[Path],
    ) -> None:
        self.model, self.limits, self.camera, self.distances = model, limits, camera, distances
        with gr.Blocks(title="Marigold", delete_cache=KEPT, analytics_enabled=False) as self.blocks:
            gr.Markdown(ABOUT)
            with gr.Row():
                with gr.Column(scale=1):
                    self.source = gr.File(label="Drop an image", file_types=sorted(SUFFIXES), elem_id="source")
                    self._offer(examples)
                    with gr.Row():
                        self.settings = self._settings()
                    choices = [kind for kind in OFFERED if kind not in (*SHOWN, *METRIC_KINDS)]
                    self.wanted = gr.CheckboxGroup(choices, value=["npy", "png"], label="Files to download")
                    start = gr.Button("Predict", variant="primary")
                    self.known = PagePoints()
                with gr.Column(scale=2):
                    self.slider = gr.ImageSlider(label="Image | depth", format="jpeg", elem_id="slider")
                    with gr.Row():
                        self.mesh = gr.Model3D(label="Mesh", height=420, scale=2, elem_id="mesh")
                        self.spread = gr.Image(
                            format="png", height=420, visible=False, buttons=["fullscreen"], elem_id="spread"
                        )
                    with gr.Row():
                        self.downloads = {kind: gr.DownloadButton(visible=False, size="sm") for kind in OFFERED}
            # File and prediction, so that points can be changed without predicting again.
            self.predicted = gr.State(time_to_live=KEPT[1])
            self._connect(start)

    def _offer(self, examples: Sequence[Path]) -> None:
        if examples:
            samples = [[str(path)] for path in examples]
            shown = gr.Dataset(label="Examples", components=[gr.Image(render=False)], samples=samples, type="index")
            shown.click(lambda index: self._copied(examples[index]), shown, self.source, api_visibility="private")

    def _new_folder(self) -> Path:
        """A folder in gradio's own, from which files are served in place and deleted after a while."""
        return Path(tempfile.mkdtemp(dir=self.source.GRADIO_CACHE))

    def _copied(self, example: Path) -> str:
        return str(shutil.copy(example, self._new_folder()))

    def _settings(self) -> dict[str, gr.Number]:
        """A field for each argument that the recipe uses, by name; the model refuses the others."""
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

    def _connect(self, start: gr.Button) -> None:
        known, shown = self.known, [self.slider, self.mesh, self.spread, *self.downloads.values()]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress_on": self.slider}
        # With a set as inputs gradio passes one dictionary by component instead of an argument for each.
        asked: set[Any] = {self.source, self.wanted, *self.settings.values()}
        self.source.change(self.look, self.source, [*shown, self.predicted, *known.components], **quiet)
        start.click(self.predict, asked, [*shown, self.predicted], **quiet)
        asked = {self.predicted, self.wanted, known.table}
        known.start.click(self.to_metres, asked, [*shown, known.answer], **quiet)

    def look(self, file: str | None) -> dict[Any, Any]:
        """Show a new image and clear earlier results; an unreadable image gets a message."""
        image = None if file is None else eight_bits(self._read(file))
        return {
            self.slider: None if image is None else (image, image),
            self.mesh: gr.Model3D(None, label="Mesh"),
            self.spread: gr.Image(None, visible=False),
            **{button: gr.DownloadButton(visible=False) for button in self.downloads.values()},
            self.predicted: None,
            **self.known.of(image),
        }

    def predict(self, values: dict[Any, Any], progress: gr.Progress = gr.Progress()) -> dict[Any, Any]:  # noqa: B008
        """Predict with the chosen settings, write the files as infer.py does, and show them."""
        file = values[self.source]
        if file is None:
            raise gr.Error("Drop an image first.", print_exception=False)
        # An empty field means the model's default.
        chosen = {name: values[field] for name, field in self.settings.items() if values[field] is not None}
        seed = chosen.pop("seed", 0)
        with _shown_as_message(file):
            image = self._read(file)
            prediction = self._predict(image, Sampling(**chosen), seed, progress)
            progress(None, desc="writing the files")
            shown = self._show(file, image, prediction, values[self.wanted])
        return {**shown, self.predicted: (file, prediction)}

    def to_metres(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Convert the last prediction to metres with the points in the table; write and show the metric files."""
        if values[self.predicted] is None:
            raise gr.Error("Predict first.", print_exception=False)
        file, prediction = values[self.predicted]
        with _shown_as_message(file):
            image, known = self._read(file), self.known.read(values[self.known.table])
            found = metric_depth(prediction, *known, image=image, name=Path(file).name)
            wanted = [*values[self.wanted], "point_cloud", *METRIC_KINDS]
            shown = self._show(file, image, prediction, wanted, found)
        return {**shown, self.known.answer: self.known.report(found)}

    def _read(self, file: str) -> Float[Tensor, "3 H W"]:
        with _shown_as_message(file):
            if (megabytes := Path(file).stat().st_size / 1e6) > self.limits.megabytes:
                raise ValueError(f"{file}: {megabytes:.1f} MB; the limit is {self.limits.megabytes:g} MB")
            return read_picture(file, round(self.limits.megapixels * 1e6))

    def _predict(self, image: Tensor, sampling: Sampling, seed: int, progress: gr.Progress) -> Prediction:
        # 0 means the image's own size, which is bounded too, as memory grows with it.
        longest = sampling.processing_resolution
        if longest is None:
            longest = self.model.settings.default_processing_resolution
        if (longest or max(image.shape)) > self.limits.processing_resolution:
            raise ValueError(
                f"the longest edge would be {longest or max(image.shape)} px in the model; the limit is "
                f"{self.limits.processing_resolution}: choose a smaller one"
            )
        total, done = (sampling.steps or self.model.default_steps or 1) * sampling.ensemble_size, 0

        # Members that are not finite are computed again, so there may be more steps than announced.
        def on_step(members: int) -> None:
            nonlocal done
            done += members
            progress((min(done, total), total), desc="denoising", unit="steps")

        progress((0, total), desc="encoding", unit="steps")
        return self.model(image[None], seed=seed, on_step=on_step, **sampling.arguments())

    def _show(
        self,
        file: str,
        image: Tensor,
        prediction: Prediction,
        wanted: Sequence[str],
        metric: MetricDepth | None = None,
    ) -> dict[Any, Any]:
        """Write the files and return the components that show them."""
        (job,) = plan(file, self._new_folder(), [kind for kind in OFFERED if kind in (*SHOWN, *wanted)])
        camera, source = self.camera.of(job.picture, *image.shape[-2:])
        write(job, image, prediction, camera, self.distances, *(metric[:2] if metric else ()))
        unit = "an unknown unit" if metric is None else "metres"
        return {
            self.slider: (eight_bits(image), str(job.files["colour"])),
            self.mesh: gr.Model3D(str(job.files["mesh"]), label=f"Mesh in {unit}, {source}"),
            self.spread: _spread(prediction),
            **{
                button: gr.DownloadButton(f"{path.parent.name}/{path.name}", str(path), visible=True)
                if (path := job.files.get(kind))
                else gr.DownloadButton(visible=False)
                for kind, button in self.downloads.items()
            },
        }


def _spread(prediction: Prediction) -> gr.Image:
    if prediction.uncertainty is None:
        return gr.Image(None, visible=False)
    values = prediction.uncertainty[0, 0].cpu().numpy()
    label = f"Uncertainty: black 0, yellow {values.max():.2g} of the depth's range"
    return gr.Image(colour(values, 0, float(values.max()), colours=ERROR_COLOURS), label=label, visible=True)


@contextmanager
def _shown_as_message(file: str) -> Iterator[None]:
    """Turn a ValueError into a message on the page, with the image's name instead of its path."""
    try:
        yield
    except ValueError as error:
        # The browser shows messages as HTML, and a file's name is the visitor's.
        message = html.escape(str(error).replace(file, Path(file).name))
        raise gr.Error(message, print_exception=False) from error
