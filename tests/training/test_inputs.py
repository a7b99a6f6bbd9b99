"""Inputs of a run: missing files, cached latents, and the entries of its training sets."""

import shutil

import pytest
import torch
from accelerate import PartialState

from marigold.cache_latents import run as cache_latents
from marigold.cache_latents import write
from marigold.config import ConfigError
from marigold.data.errors import DataError
from marigold.files import LOCK
from marigold.inputs import Settings, load_inputs, mixture_dataset, open_inputs
from marigold.model.base import latents_identity
from marigold.train import run
from marigold.training.objective import encode_batch
from runs import composed, files, losses


@pytest.fixture
def rooms(tmp_path, rooms_data):
    """A copy of the rooms that a test may damage."""
    return shutil.copytree(rooms_data, tmp_path / "data") / "rooms"


def test_all_that_is_missing_is_counted_set_by_set_in_one_message(tmp_path, rooms, configure):
    streets = (rooms / "vkitti/train.txt").read_text().split()
    held_out = next((rooms / "hypersim/val").rglob("*.png"))
    for file in (*list((rooms / "hypersim/train").rglob("*.png"))[:3], rooms / "vkitti" / streets[0], held_out):
        file.unlink()
    with pytest.raises(DataError, match="make data") as caught:
        run(configure(tmp_path / "run", f"paths.data={rooms.parent}", f"model.base={tmp_path / 'nowhere'}"))
    problems = str(caught.value).split("\n- ")[1:]
    expected = ["3 of 16 listed files", f"1 of {len(streets)} listed files", str(tmp_path / "nowhere"), "1 of "]
    assert [text in problem for text, problem in zip(expected, problems, strict=True)] == [True] * 4
    assert not files(tmp_path / "run").keys() - {LOCK}


def test_cached_latents_need_no_training_images_and_give_their_loss(tmp_path, rooms, configure, whole):
    cached = (f"paths.data={rooms.parent}", f"cache.folder={tmp_path}", "cache.enabled=true", "train.steps=2")
    cache_latents(configure(tmp_path / "run", *cached))
    for file in rooms.rglob("*.png"):
        file.unlink()
    assert run(configure(tmp_path / "run", *cached, "validation=none"))
    assert losses(tmp_path / "run") == pytest.approx(losses(whole)[:1], rel=1e-3)  # as float16 rounds latents
    assert not (tmp_path / "run/best").exists()


LEARNED = {
    "plain": [],
    "supervised": ["recipe.mapping=log_depth", "recipe.far=supervise"],
    "augmented": [
        "recipe.mapping=sqrt_disparity",
        "recipe.far=supervise",
        "recipe.augmentation={variants:2,crop:0.6,photometric:0.8}",
    ],
}


@pytest.mark.parametrize(
    ("learned", "dtype", "precision", "tolerance"),
    [
        ("supervised", "float32", "no", 1e-6),
        ("augmented", "float16", "no", 2**-11),  # its 11 bits
        ("plain", "float32", "bf16", 2**-5),
    ],
)
def test_cached_batches_are_those_of_the_images(tmp_path, configure, learned, dtype, precision, tolerance):
    """Of both data sets, with flips, as latents and as pixels."""
    cache = ("cache.enabled=true", f"cache.folder={tmp_path}", f"cache.dtype={dtype}", f"cache.precision={precision}")
    weights = ("data.hypersim.weight=0.5", "data.vkitti.weight=0.5", "cache.batch=3")
    both = "+recipe.loss.pixels={term: marigold.training.losses.l1, domain: pixels, weight: 1.0}"
    config = configure(tmp_path / "run", *cache, *weights, both, *LEARNED[learned])
    settings = Settings.read(config)
    sets, backbone = load_inputs(config, settings, [], files=True)
    with torch.no_grad():
        for part in sets:
            write(part, settings, backbone.vae, latents_identity(backbone.vae), PartialState(cpu=True))
    config.cache.enabled = False
    cached, images = (mixture_dataset(one, sets, backbone) for one in (settings, Settings.read(config)))
    for g in range(6):
        batch, wanted = cached[g], encode_batch(backbone.vae, images[g], settings.recipe.parts)
        assert batch.names == wanted.names
        for part in ("valid_latent", "valid", "half_range"):
            assert torch.equal(getattr(batch, part), getattr(wanted, part)), part
        for part in ("image_latent", "depth_latent", "depth_norm"):
            torch.testing.assert_close(getattr(batch, part), getattr(wanted, part), atol=tolerance, rtol=tolerance)
    assert {cached.mixture[g].dataset for g in range(6)} == {0, 1}
    assert (learned == "augmented") == any(any(cached.mixture[g].variants) for g in range(6))


def test_caches_of_two_mappings_and_two_augmentations_lie_side_by_side(tmp_path, configure):
    def cached(*overrides):
        config = configure(tmp_path / "run", "cache.enabled=true", f"cache.folder={tmp_path / 'latents'}", *overrides)
        cache_latents(config)
        return config

    cached()
    kept = files(tmp_path / "latents")
    for number, recipe in enumerate(([], ["recipe.augmentation.crop=0.5"], ["train.seed=1"]), 1):
        cached("recipe.mapping=disparity", "recipe.augmentation={variants:2,crop:0.6,photometric:0.8}", *recipe)
        assert len(list((tmp_path / "latents/hypersim").glob("disparity-augmented-*"))) == number
    assert {name: files(tmp_path / "latents")[name] for name in kept} == kept


@pytest.mark.parametrize("override", ["data.vkitti.weight=0", "~data.vkitti"])
def test_a_set_is_left_out(tmp_path, configure, override):
    """Sets of a user's own are typed by the rehearsal."""
    config = configure(tmp_path, override)
    inputs = open_inputs(config, Settings.read(config))
    assert [part.name for part in inputs.sets] == [part.name for part in inputs.validation_sets] == ["hypersim"]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["+data.vkitti.wieght=1"], r"data\.vkitti: .*wieght"),
        (["~data.vkitti.reader", "~data.vkitti.transform"], r"data\.vkitti: .*reader, transform"),
        (["data.vkitti.weight=-1"], r"data\.vkitti\.weight: .* -1"),
        (["data.vkitti=null"], r"data\.vkitti: .* None"),
        (["+data.vkitti.transform.sise=1"], r"data\.vkitti\.transform: sise"),
        (["data.hypersim.weight=0", "data.vkitti.weight=0"], "weight"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(tmp_path, arguments, overrides, key):
    with pytest.raises(ConfigError, match=key):
        run(composed("train", *(one for one in arguments if "crop" not in one), f"run_dir={tmp_path}", *overrides))
