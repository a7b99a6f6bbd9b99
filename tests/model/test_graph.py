"""The graph in both of its forms gives MarigoldDepth's depth to 1e-5, at sizes and batches that no trace has seen."""

import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from test_export import made_by_recipe
from tiny_models import sample_image, start, with_scheduler
from torch import Tensor

from marigold.model.export import ExportError
from marigold.model.graph import OneStep, write_onnx, write_pt2
from marigold.model.pipeline import MarigoldDepth

# Batch, height and width: the least that the tiny U-Net takes, odd numbers at each of its levels, upright and wide.
SIZES = [(1, 40, 40), (2, 48, 72), (1, 104, 56), (3, 56, 40)]
SILENT, NOISY, TOLD = "lotus_d", "marigold", "lotus_g"  # with a task switch; of many steps; of one pass with noise


def inputs(model: MarigoldDepth, batch: int, height: int, width: int) -> dict[str, Tensor]:
    image = {"image": sample_image(height, width, batch)}
    return image if model.switches.silent else {**image, "noise": start(batch, height, width)}


def expected(model: MarigoldDepth, image: Tensor, noise: Tensor | None = None) -> Tensor:
    depth = model(image, steps=None if model.switches.one_pass else 1, latents=noise).depth
    assert depth.std() > 0.01, "a flat prediction would prove nothing"
    return depth


@pytest.mark.slow
@pytest.mark.timeout(900)  # the jaxtyping hook checks every layer of a trace
@pytest.mark.parametrize(("recipe", "beside"), [(NOISY, False), (TOLD, False), (SILENT, True)])
def test_onnx_gives_the_same_depth(recipe: str, beside: bool, tmp_path: Path):
    """Also with weights in a file beside it, which moves with it."""
    model, folder = made_by_recipe(recipe), tmp_path / "written"
    folder.mkdir()
    write_onnx(model, folder / "depth.onnx", external_data=beside)
    assert {path.name for path in folder.iterdir()} == {"depth.onnx", *(["depth.onnx.data"] if beside else [])}
    file = folder.rename(tmp_path / "moved") / "depth.onnx"
    assert (file.stat().st_size < 2**22) == beside
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["space"] == model.space
    for size in SIZES:
        given = inputs(model, *size)
        (depth,) = session.run(["depth"], {name: values.numpy() for name, values in given.items()})
        torch.testing.assert_close(torch.from_numpy(depth), expected(model, **given), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe", [NOISY, SILENT])
def test_torch_export_gives_the_same_depth_and_refuses_other_sizes(recipe: str, tmp_path: Path):
    model, file, extra = made_by_recipe(recipe), tmp_path / "depth", {"space": ""}
    write_pt2(model, file)
    loaded = torch.export.load(file, extra_files=extra).module()
    assert extra["space"] == model.space
    for size in SIZES:
        given = inputs(model, *size)
        torch.testing.assert_close(loaded(*given.values()), expected(model, **given), atol=1e-5, rtol=0)
    for size in [(1, 44, 48), (1, 32, 48)]:
        with pytest.raises((AssertionError, RuntimeError)):
            loaded(*inputs(model, *size).values())


def test_the_module_predicts_the_same_shares_the_weights_and_leaves_the_model_alone():
    model = made_by_recipe(NOISY)
    given, unet = inputs(model, *SIZES[1]), model.backbone.unet
    before = expected(model, **given)
    step = OneStep(model)
    assert {id(weight) for weight in step.unet.parameters()} == {id(weight) for weight in unet.parameters()}
    with torch.no_grad():
        assert torch.equal(step(**given), before)
    assert torch.equal(expected(model, **given), before)


def test_models_that_one_step_takes_nowhere_are_refused():
    with pytest.raises(ExportError, match="timestep_spacing"):
        OneStep(with_scheduler(made_by_recipe(NOISY), timestep_spacing="leading"))
    OneStep(with_scheduler(made_by_recipe(SILENT), timestep_spacing="leading"))


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"onnxscript.*\[onnx\]"):
        write_onnx(made_by_recipe(NOISY), tmp_path / "depth.onnx")
