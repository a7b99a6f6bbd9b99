"""What a run needs and what it does without: missing files, cached latents, and a user's own training set."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from accelerate import PartialState
from omegaconf import OmegaConf

from marigold.cache_latents import run as cache_latents
from marigold.cache_latents import write
from marigold.config import ConfigError
from marigold.data.augmentation import Augmentation
from marigold.data.errors import DataError
from marigold.data.latent_cache import CacheError
from marigold.data.transforms import Target
from marigold.files import LOCK
from marigold.inputs import Settings, load_inputs, mixture_dataset, open_inputs
from marigold.model.base import latents_identity
from marigold.train import run
from marigold.training.objective import encode_batch
from marigold.training.recipe import LossTerm
from runs import composed, figures, files, losses

PARTS = {  # list, folder
    "hypersim": ("hypersim/filename_list_train.txt", "hypersim/train"),
    "hypersim_val": ("hypersim/filename_list_val.txt", "hypersim/val"),
    "vkitti": ("vkitti/train.txt", "vkitti"),
    "vkitti_val": ("vkitti/val.txt", "vkitti"),
}


@pytest.fixture
def data(tmp_path, rooms_data):
    """A copy of the data that a test may damage."""
    return shutil.copytree(rooms_data, tmp_path / "data")


def listed(data, name):
    """The files of a list."""
    split_list, root = PARTS[name]
    return [data / "rooms" / root / file for file in (data / "rooms" / split_list).read_text().split()]


def test_all_that_is_missing_is_counted_set_by_set_in_one_message(tmp_path, data, configure):
    counts = {"hypersim": 3, "vkitti": 1, "hypersim_val": 1}
    expected = [f"{count} of {len(listed(data, name))} listed files" for name, count in counts.items()]
    for name, count in counts.items():
        for file in listed(data, name)[:count]:
            file.unlink()
    with pytest.raises(DataError, match="make data") as caught:
        run(configure(tmp_path / "run", f"paths.data={data}", f"model.base={tmp_path / 'nowhere'}"))
    problems = str(caught.value).split("\n- ")[1:]
    expected.insert(2, f"{tmp_path / 'nowhere'}")
    assert [said in problem for said, problem in zip(expected, problems, strict=True)] == [True] * 4
    assert not files(tmp_path / "run").keys() - {LOCK}


def test_cached_latents_need_no_training_images_and_give_their_loss(tmp_path, data, configure, whole):
    cached = (f"paths.data={data}", f"cache.folder={tmp_path / 'latents'}", "cache.enabled=true", "train.steps=2")
    cache_latents(configure(tmp_path / "run", *cached))
    for file in listed(data, "hypersim") + listed(data, "vkitti"):
        file.unlink()
    assert run(configure(tmp_path / "validated", *cached))
    assert losses(tmp_path / "validated") == pytest.approx(losses(whole)[:1], rel=1e-3)  # as float16 rounds latents
    for file in listed(data, "hypersim_val") + listed(data, "vkitti_val"):
        file.unlink()
    assert run(configure(tmp_path / "plain", *cached, "validation=none"))
    assert not (tmp_path / "plain/best").exists()


LEARNED = {
    "plain": Target(),
    "supervised": Target("log_depth", far="supervise"),
    "augmented": Target("sqrt_disparity", "supervise", Augmentation(2, crop=0.6, photometric=0.8), seed=3),
}


TERMS = {
    "latents": LossTerm("marigold.training.losses.latent_mse", "latents", 1.0),
    "pixels": LossTerm("marigold.training.losses.l1", "pixels", 1.0),
}


def learning(settings: Settings, target: Target, *, latents: bool, pixels: bool) -> Settings:
    """The settings with a recipe that learns this target, and needs it as latents, as pixels, or both."""
    loss = {domain: TERMS[domain] for domain, wanted in (("latents", latents), ("pixels", pixels)) if wanted}
    learned = {"mapping": target.mapping, "far": target.far, "augmentation": target.augmentation}
    recipe = replace(settings.recipe, noise="none", loss=loss, **learned)
    return replace(settings, recipe=recipe, train=replace(settings.train, seed=target.seed))


@pytest.mark.parametrize(
    ("learned", "dtype", "precision", "tolerance"),
    [
        ("plain", "float32", "no", 1e-6),
        ("supervised", "float32", "no", 1e-6),
        ("augmented", "float32", "no", 1e-6),
        ("augmented", "float16", "no", 2**-11),  # its 11 bits
        ("plain", "float32", "bf16", 2**-5),
    ],
)
def test_cached_batches_are_those_of_the_images(tmp_path, configure, learned, dtype, precision, tolerance):
    """Of both data sets, with flips."""
    target = LEARNED[learned]
    cache = ("cache.enabled=true", f"cache.folder={tmp_path}", f"cache.dtype={dtype}", f"cache.precision={precision}")
    weights = ("data.hypersim.weight=0.5", "data.vkitti.weight=0.5", "cache.batch=3")
    config = configure(tmp_path / "run", *cache, *weights)
    settings = learning(Settings.read(config), target, latents=True, pixels=True)
    sets, backbone = load_inputs(config, settings, [], files=True)
    vae_hash, state = latents_identity(backbone.vae), PartialState(cpu=True)
    for part in sets:
        with torch.no_grad():
            write(part, settings, backbone.vae, vae_hash, state)
    uncached = replace(settings, cache=replace(settings.cache, enabled=False))
    cached, images = (mixture_dataset(one, sets, backbone) for one in (settings, uncached))
    for g in range(6):
        batch, wanted = cached[g], encode_batch(backbone.vae, images[g], settings.recipe.parts)
        assert batch.names == wanted.names
        for part in ("valid_latent", "valid", "half_range"):
            assert torch.equal(getattr(batch, part), getattr(wanted, part)), part
        for part in ("image_latent", "depth_latent", "depth_norm"):
            torch.testing.assert_close(getattr(batch, part), getattr(wanted, part), atol=tolerance, rtol=tolerance)
        if dtype == "float32":
            assert torch.equal(batch.depth_norm, wanted.depth_norm)
    assert {cached.mixture[g].dataset for g in range(6)} == {0, 1}
    assert (learned == "augmented") == any(any(cached.mixture[g].variants) for g in range(6))


def test_caches_of_two_mappings_lie_side_by_side(tmp_path, configure):
    config = configure(tmp_path / "run", "cache.enabled=true", f"cache.folder={tmp_path / 'latents'}")
    settings = Settings.read(config)
    sets, backbone = load_inputs(config, settings, [], files=True)
    latents, pixels = {"latents": True, "pixels": False}, {"latents": False, "pixels": True}

    def folders(target, wanted):
        return [store.folder.name for store in sets[0].stores(settings.cache, target, "", **wanted)]

    assert folders(Target(), latents) == ["image", "depth"]
    assert folders(Target("disparity", "supervise"), pixels) == ["image", "disparity-supervise-pixels"]
    varied = Augmentation(2, crop=0.6, photometric=0.8)
    changes = ({}, {"variants": 3}, {"crop": 0.5}, {"photometric": 0.5})
    augmented = [Target(augmentation=replace(varied, **change)) for change in changes]
    names = {folders(target, latents)[0] for target in (*augmented, Target(augmentation=varied, seed=1))}
    assert len(names) == 5
    assert all(re.fullmatch("image-augmented-[0-9a-f]{8}", name) for name in names)
    cache_latents(config)
    kept = files(tmp_path / "latents")
    other = learning(settings, Target("disparity"), **pixels)
    with pytest.raises(CacheError, match=r"hypersim/disparity-pixels lacks 1 of 1 shards"):
        mixture_dataset(other, sets, backbone)
    with torch.no_grad():
        for one in sets:
            write(one, other, backbone.vae, latents_identity(backbone.vae), PartialState(cpu=True))
    assert {name: files(tmp_path / "latents")[name] for name in kept} == kept
    assert mixture_dataset(other, sets, backbone)[0].depth_latent is None


@pytest.fixture
def compose_with(tmp_path, arguments, rooms_data):
    """compose_with(*overrides) with a user's configuration folder, whose data/mine.yaml holds the set `mine`."""
    rooms = rooms_data / "rooms/hypersim"
    entry = {
        "weight": 1.0,
        "licence": "my own terms",
        "reader": {
            "_target_": "marigold.data.training_sets.Hypersim",
            "name": "mine",
            "root": str(rooms / "train"),
            "split_list": str(rooms / "filename_list_train.txt"),
            "min_depth": 0.1,
            "max_depth": 50.0,
        },
        "transform": {"size": None, "antialias": False, "quantile": 0.02},
        # A key that the reader itself leaves at its default may differ too.
        "held_out": {"root": str(rooms / "val"), "split_list": str(rooms / "filename_list_val.txt"), "limit": 2},
    }
    beside = {"defaults": ["rooms", "_self_"], "mine": entry}
    (tmp_path / "user/data").mkdir(parents=True)
    for name, content in (("mine", {"mine": entry}), ("beside", beside)):
        OmegaConf.save(content, tmp_path / f"user/data/{name}.yaml")
    common = [argument for argument in arguments if not argument.startswith("data.")]

    def compose_with(*overrides):
        where = [f"hydra.searchpath=[file://{tmp_path / 'user'}]", f"run_dir={tmp_path / 'run'}"]
        return composed("train", *where, *common, *overrides)

    return compose_with


@pytest.mark.parametrize(
    "chosen", [("data.hypersim.weight=0", "data.vkitti.weight=0"), ("~data.hypersim", "~data.vkitti")]
)
def test_a_set_of_the_users_replaces_those_beside_it(compose_with, chosen):
    config = compose_with("data=beside", *chosen)
    assert [part.name for part in open_inputs(config, Settings.read(config)).sets] == ["mine"]


def test_a_set_of_the_users_trains_alone(tmp_path, compose_with):
    assert run(compose_with("data=mine", "train.steps=2", "train.validate_every=1", "validation.panel=1"))
    validated = [line for line in figures(tmp_path / "run") if "loss" not in line]
    assert [set(line) for line in validated] == [{"step", "mine/abs_rel", "mine/delta1"}] * 2
    best = min(validated, key=lambda line: line["mine/abs_rel"])
    card = (tmp_path / "run/best/README.md").read_text()
    assert f"value: {best['mine/abs_rel']}" in card
    assert "- mine: my own terms" in card
    assert "rendered by this package" not in card
    assert set(files(tmp_path / "run/panels")) == {"step_000001.png", "step_000002.png"}


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["+data.mine.wieght=1"], r"data\.mine: .*wieght"),
        (["~data.mine.reader", "~data.mine.transform"], r"data\.mine: .*reader, transform"),
        (["data.mine.weight=-1"], r"data\.mine\.weight: .* -1"),
        (["data.mine=null"], r"data\.mine: .* None"),
        (["data.mine.weight=0"], "weight"),
        (["+data.mine.transform.sise=1"], r"data\.mine\.transform: sise"),
        (["+data.mine.reader.depth=1"], r"data\.mine\.reader: depth"),
        (["+data.mine.held_out.depth=1"], r"mine\.reader: depth"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(compose_with, overrides, key):
    with pytest.raises(ConfigError, match=key):
        run(compose_with("data=mine", *overrides))
