"""Export one step of a depth model as a graph without this package or diffusers: ONNX, or torch.export's pt2.

Input and output are at the processing size: the caller resizes and pads, as docs/export.md shows.
"""

import copy
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from marigold.model.backbone import LATENT_CHANNELS, VAE_FACTOR
from marigold.model.export import ExportError
from marigold.model.latents import decode_depth, encode_image
from marigold.model.pipeline import MarigoldDepth

LARGEST_BATCH, LARGEST_SIDE = 2**16, 2**16  # of latents; the tracer needs upper bounds


class OneStep(nn.Module):
    """A depth model's one-step prediction as a module from tensors to a tensor; the empty prompt is a constant."""

    def __init__(self, model: MarigoldDepth) -> None:
        """Share the model's weights. Raises ExportError for a model that one step cannot denoise."""
        super().__init__()
        if not model.switches.one_pass and model.diffusion.timestep_spacing == "leading":
            raise ExportError(
                "scheduler: timestep_spacing=leading: a single step would start from the least noise level, on pure "
                "noise; set timestep_spacing to trailing in the checkpoint's scheduler/scheduler_config.json"
            )
        self.unet, self.vae = traceable(model.backbone.unet), traceable(model.backbone.vae)
        self.smallest = 2**self.unet.num_upsamplers + 1  # latents on a side: below, the lowest level is 1 wide
        # Forces explicit upsampling sizes; else the trace would only hold for multiples of 2^levels.
        self.unet.num_upsamplers = LARGEST_SIDE.bit_length()
        self.model = MarigoldDepth(replace(model.backbone, unet=self.unet, vae=self.vae), model.settings)
        # Computed now, they become constants of the graph.
        self.model.prompt, self.model.diffusion.alphas_cumprod  # noqa: B018

    def forward(
        self, image: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B 4 h w"] | None = None
    ) -> Float[Tensor, "B 1 H W"]:
        """Depth in [0, 1] of images in [0, 1] whose sides are multiples of 8; as `MarigoldDepth` with steps=1.

        noise: the start, standard normal, h = H / 8; None for a recipe without noise.
        """
        condition = encode_image(self.vae, image * 2 - 1)
        start = torch.zeros_like(condition) if noise is None else noise
        return (decode_depth(self.vae, self.model.denoise(condition, start, steps=1)) + 1) / 2


class Upsample(nn.Module):
    """diffusers' `Upsample2D` without its branches on sizes, which would specialise a trace."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(
        self, hidden: Float[Tensor, "B C h w"], output_size: torch.Size | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Repeat pixels up to `output_size`, by default twice the size, and convolve."""
        size = output_size or (2 * hidden.shape[-2], 2 * hidden.shape[-1])
        return self.conv(F.interpolate(hidden, size=size, mode="nearest"))


def traceable(network: Any) -> Any:
    """Copy a network, sharing its weights, so that its graph holds for every size and batch."""
    copied = copy.deepcopy(network, {id(weight): weight for weight in network.parameters()})
    for name, part in list(copied.named_modules()):
        if isinstance(part, Upsample2D) and part.conv is not None:
            parent, _, own = name.rpartition(".")
            setattr(copied.get_submodule(parent), own, Upsample(part.conv))
    return copied


@torch.no_grad()
def trace(model: MarigoldDepth) -> ExportedProgram:
    """Trace `OneStep` with inputs `image` and, if the recipe has noise, `noise`, of any batch and size.

    Sides are multiples of 8, of at least 8 x (2^n + 1) pixels with a U-Net that halves n times. Raises ExportError as
    `OneStep` does.
    """
    step = OneStep(model).eval()
    # Example sides are neither equal nor multiples of a level's, so that the trace assumes neither.
    height, width = step.smallest + 1, step.smallest + 2
    batch = Dim("batch", max=LARGEST_BATCH)
    h, w = (Dim(name, min=step.smallest, max=LARGEST_SIDE) for name in "hw")
    inputs = {"image": torch.rand(2, 3, VAE_FACTOR * height, VAE_FACTOR * width)}
    shapes = {"image": {0: batch, 2: VAE_FACTOR * h, 3: VAE_FACTOR * w}}
    if not model.switches.silent:
        inputs["noise"] = torch.randn(2, LATENT_CHANNELS, height, width)
        shapes["noise"] = {0: batch, 2: h, 3: w}
    return torch.export.export(step, tuple(inputs.values()), dynamic_shapes=shapes)


def write_pt2(model: MarigoldDepth, file: Path) -> None:
    """Write the graph for `torch.export.load`; the space of its depth is the extra file `space`."""
    with file.open("wb") as stream:  # given a name, torch insists on the suffix .pt2
        torch.export.save(trace(model), stream, extra_files={"space": model.space})


def write_onnx(model: MarigoldDepth, file: Path, external_data: bool = False) -> None:
    """Write the graph as ONNX, output `depth`; the space of the depth is its metadata's `space`.

    Weights of more than 1.5 GB, or all with `external_data`, go to `file`.data, as a protobuf message holds 2 GB.
    Raises ExportError when a package is missing, or as `trace`.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ExportError(f"format=onnx needs {error.name}: pip install -e '.[onnx]'") from error
    # It warns about torchvision's operators, which our graphs do not use.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    traced = trace(model)
    with warnings.catch_warnings():
        # The exporter itself uses deprecated parts of Python and torch.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(traced, dynamo=True, output_names=["depth"], verbose=False)
    assert program is not None
    program.model.metadata_props["space"] = model.space
    program.save(file, external_data=external_data)
