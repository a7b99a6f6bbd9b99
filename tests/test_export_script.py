import json
import re
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


def run(source: Path | str, output: Path | str, form: str = "diffusers") -> None:
    export.run(composed("export", f"checkpoint={source}", f"output={output}", f"format={form}"))


def test_diffusers_reads_the_exported_folder_and_its_card_tells_so(source: Path, tmp_path: Path):
    output = tmp_path / "new/exported"
    output.mkdir(parents=True)  # an empty folder may be there
    run(source, output)
    assert list(output.parent.iterdir()) == [output]
    assert "refuses it" not in (output / "README.md").read_text()
    assert json.loads((output / "model_index.json").read_text())["_class_name"] == "MarigoldDepthPipeline"
    MarigoldDepthPipeline.from_pretrained(output)  # tests/model/test_export.py compares the predictions


@pytest.mark.parametrize(
    ("taken", "output", "form"),
    [
        ("output", "output", "diffusers"),
        ("output/mine", "output", "diffusers"),
        ("depth.onnx.data", "depth.onnx", "onnx"),
    ],
)
def test_an_occupied_output_is_left_alone(source: Path, tmp_path: Path, taken: str, output: str, form: str):
    mine = tmp_path / taken
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(ConfigError, match="output"):
        run(source, tmp_path / output, form)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def test_a_wrong_format_or_checkpoint_is_one_error(source: Path, checkpoint: Path, tmp_path: Path):
    for given, form, error in (
        (source, "jpeg", ConfigError),
        ("missing/folder/here", "diffusers", ValueError),
        (checkpoint, "diffusers", ExportError),  # diffusers reads it as it is
    ):
        with pytest.raises(error):
            run(given, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_snippet_of_the_docs_predicts_as_the_model_does(source: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(source, "depth.onnx", "onnx")
    pixels = (256 * np.random.default_rng(0).random((44, 61, 3))).astype(np.uint8)
    Image.fromarray(pixels).save("photo.jpg", quality=95)
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    names: dict[str, np.ndarray] = {}
    exec(snippet, names)
    expected = MarigoldDepth.from_pretrained(source)(Image.open("photo.jpg")).depth[0, 0]
    torch.testing.assert_close(torch.from_numpy(names["depth"]), expected, atol=1e-5, rtol=0)
