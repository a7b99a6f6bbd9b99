import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import MarigoldDepthPipeline
from PIL import Image

from marigold import export
from marigold.config import ConfigError
from marigold.miniature.random_base import SIZES, build_components
from marigold.model.export import ExportError
from marigold.model.model_card import model_card
from marigold.model.pipeline import MarigoldDepth
from marigold.model.recipe import Switches
from marigold.model.settings import DepthSettings
from runs import ROOT, composed

SWITCHES = Switches(mapping="sqrt_disparity", noise="none", timesteps="1", prediction="sample")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that diffusers refuses, with its model card; not to be written to."""
    model = MarigoldDepth(build_components(0, *SIZES["tiny"]), DepthSettings(SWITCHES, True, True, 1, 0))
    facts = {"name": "mine", "base": "a/b", "licence": None, "data": {}, "settings": {}}
    card = model_card(switches=SWITCHES, **facts)
    return model.save_pretrained(tmp_path_factory.mktemp("source") / "model", card=card)


def run(*overrides: str) -> None:
    export.run(composed("export", *overrides))


def test_diffusers_predicts_the_same_from_what_was_exported(source: Path, tmp_path: Path):
    output = tmp_path / "new/exported"
    output.mkdir(parents=True)  # an empty folder may be there
    run(f"checkpoint={source}", f"output={output}", "format=diffusers")
    assert list(output.parent.iterdir()) == [output]
    assert json.loads((output / "model_index.json").read_text())["_class_name"] == "MarigoldDepthPipeline"
    card = (output / "README.md").read_text()
    assert "refuses it" not in card
    assert card.startswith("---\n")
    theirs = MarigoldDepthPipeline.from_pretrained(output)
    theirs.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    ours = MarigoldDepth.from_pretrained(source)(image).depth
    torch.testing.assert_close(theirs(image, output_type="pt").prediction, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("occupied", ["file", "folder"])
def test_an_output_that_holds_something_is_left_alone(source: Path, tmp_path: Path, occupied: str):
    output = tmp_path / "output"
    mine = output if occupied == "file" else output / "mine"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(ConfigError, match="output"):
        run(f"checkpoint={source}", f"output={output}")
    assert mine.read_text() == "mine"


def test_a_failure_leaves_nothing_behind(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, text: str) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        run(f"checkpoint={source}", f"output={tmp_path / 'output'}")
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_is_one_error(source: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="format"):
        run(f"checkpoint={source}", f"output={tmp_path / 'out'}", "format=jpeg")
    with pytest.raises(ValueError, match="no model at"):
        run("checkpoint=missing/folder/here", f"output={tmp_path / 'out'}")
    stock = MarigoldDepth.from_pretrained(source)
    base = build_components(0, *SIZES["tiny"], in_channels=8)
    MarigoldDepth(base, replace(stock.settings, switches=Switches(), recipe=None)).save_pretrained(tmp_path / "stock")
    with pytest.raises(ExportError, match="as it is"):
        run(f"checkpoint={tmp_path / 'stock'}", f"output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("taken", ["depth.onnx", "depth.onnx.data"])
def test_a_file_is_not_replaced_nor_what_lies_beside_it(source: Path, tmp_path: Path, taken: str):
    (tmp_path / taken).write_text("mine")
    with pytest.raises(ConfigError, match="output"):
        run(f"checkpoint={source}", f"output={tmp_path / 'depth.onnx'}", "format=onnx")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_snippet_of_the_docs_predicts_as_the_model_does(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    run(f"checkpoint={source}", "output=depth.onnx", "format=onnx")
    assert "depth.onnx" in capsys.readouterr().out
    pixels = (256 * np.random.default_rng(0).random((44, 61, 3))).astype(np.uint8)
    Image.fromarray(pixels).save("photo.jpg", quality=95)
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    names: dict[str, np.ndarray] = {}
    exec(snippet, names)
    expected = MarigoldDepth.from_pretrained(source)(Image.open("photo.jpg")).depth[0, 0]
    torch.testing.assert_close(torch.from_numpy(names["depth"]), expected, atol=1e-5, rtol=0)
