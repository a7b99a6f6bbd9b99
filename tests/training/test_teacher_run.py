"""A run on stored predictions: from the verb that writes them to the steps, and what is refused before the first."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from marigold import infer
from marigold.cache_latents import run as cache_latents
from marigold.data.errors import DataError
from marigold.data.latent_cache import CacheError
from marigold.inputs import Settings, open_inputs
from marigold.miniature.random_base import SIZES, build_components
from marigold.model.pipeline import DepthSettings, MarigoldDepth
from marigold.model.recipe import Switches
from marigold.train import run
from marigold.training.settings import TrainingError
from runs import composed, losses


@pytest.fixture(scope="module")
def predicted(tmp_path_factory, rooms_data):
    """Images, and below `depth` what a checkpoint that learned disparity predicts of them."""
    folder = tmp_path_factory.mktemp("teacher")
    for number, file in enumerate(sorted((rooms_data / "rooms/hypersim/train").rglob("rgb_*.png"))[:4]):
        place = folder / "images" / ("sub" if number % 2 else "") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    components = build_components(0, *SIZES["tiny"], in_channels=8)
    model = MarigoldDepth(components, DepthSettings(Switches(mapping="disparity"), True, True, 1, 0))
    model.save_pretrained(folder / "checkpoint")
    overrides = [f"input={folder}/images", f"output={folder}/depth", f"checkpoint={folder}/checkpoint", "device=cpu"]
    assert infer.run(composed("infer", *overrides))
    return folder


@pytest.fixture
def configure(tmp_path, arguments, predicted):
    """configure(*overrides): two steps of a run with data=teacher on a copy of these."""
    shutil.copytree(predicted, tmp_path / "teacher")
    common = [argument for argument in arguments if not argument.startswith("data.")]
    mine = [
        "data=teacher",
        f"data.teacher.reader.root={tmp_path}/teacher/images",
        f"data.teacher.reader.labels={tmp_path}/teacher/depth/depth_npy",
        "data.teacher.reader.space=affine_disparity",
        "data.teacher.transform={size:null,antialias:false}",
        "recipe.mapping=disparity",
        f"cache.folder={tmp_path}/latents",
        *("train.steps=2", "train.validate_every=2", f"run_dir={tmp_path}/run"),
    ]

    return lambda *overrides: composed("train", *common, *mine, *overrides)


def opened(config):
    return open_inputs(config, Settings.read(config))


def test_predictions_of_a_checkpoint_teach_another(tmp_path, configure):
    assert run(configure())
    assert all(np.isfinite(losses(tmp_path / "run")))
    assert "- teacher: the images' licence" in (tmp_path / "run/final/README.md").read_text()
    for kind in ("npy", "png"):  # how they are read: tests/data/test_teacher.py
        inputs = opened(configure(f"data.teacher.reader.labels={tmp_path}/teacher/depth/depth_{kind}"))
        assert inputs.data.sources[0].names == ["0.png", "2.png", "sub/1.png", "sub/3.png"]


@pytest.mark.slow
def test_labels_may_move_but_not_change(tmp_path, configure):
    """A run and its cache resume where the same labels lie elsewhere, and not with other ones."""
    cached = configure("cache.enabled=true")
    cache_latents(cached)
    assert run(cached)
    (tmp_path / "teacher/depth").rename(tmp_path / "moved")
    moved = ("cache.enabled=true", "train.steps=3", f"data.teacher.reader.labels={tmp_path}/moved/depth_npy")
    assert run(configure(*moved))
    np.save(tmp_path / "moved/depth_npy/0.npy", np.random.default_rng(0).random((48, 64), dtype=np.float32))
    with pytest.raises(DataError, match=r"latents/teacher/.*labels"):
        run(configure(*moved))
    again = (*moved, f"cache.folder={tmp_path}/other")
    cache_latents(configure(*again))
    with pytest.raises(TrainingError, match=r"data\.teacher\.labels"):
        run(configure(*again))


def test_what_cannot_be_learned_or_measured_is_refused_before_the_first_step(tmp_path, configure):
    with pytest.raises(DataError, match=r"affine_disparity[^$]*recipe\.mapping=disparity[^$]*held_out"):
        run(configure("recipe.mapping=log_depth", "+data.teacher.held_out={limit:2}"))
    with pytest.raises(DataError, match="affine_disparity"):
        cache_latents(configure("recipe.mapping=depth"))
    Image.new("RGB", (48, 64)).save(tmp_path / "teacher/images/2.png")
    np.save(tmp_path / "teacher/depth/depth_npy/2.npy", np.random.default_rng(0).random((64, 48), dtype=np.float32))
    with pytest.raises(ValueError, match=r"transform\.size"):
        run(configure())
    with pytest.raises(CacheError, match=r"transform\.size"):
        cache_latents(configure("cache.batch=1"))
    (tmp_path / "teacher/depth/depth_npy/sub/3.npy").unlink()
    with pytest.raises(DataError, match=r"teacher.*sub/3\.png"):
        run(configure())


def test_labels_in_metres_can_be_validated_on_and_teach_any_mapping(tmp_path, configure):
    metres = ("data.teacher.reader.space=metric_depth", "recipe.mapping=sqrt_disparity")
    (part,) = opened(configure(*metres, "+data.teacher.held_out={limit:2}")).validation_sets
    assert (part.name, len(part.samples)) == ("teacher", 2)
    label = np.load(tmp_path / "teacher/depth/depth_npy/0.npy")
    assert torch.equal(part.samples[0].depth[0], torch.from_numpy(label))
