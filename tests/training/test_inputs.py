"""What a run needs and what it does without: missing files, cached latents, and a user's own training set."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from marigold.cache_latents import run as cache_latents
from marigold.cache_latents import write
from marigold.config import ConfigError
from marigold.data.augmentation import Augmentation
from marigold.data.errors import DataError
from marigold.data.latent_cache import CacheError
from marigold.data.transforms import Target
from marigold.depth.mapping import MAPPINGS
from marigold.inputs import Settings, load_inputs, mixture_dataset
from marigold.model.base import latents_identity
from marigold.train import run
from marigold.training.objective import encode_batch
from marigold.training.recipe import LossTerm
from runs import figures, files

CONFIGS = Path(__file__).parent.parent.parent / "configs"
LISTS = {
    "hypersim": "hypersim/filename_list_train.txt",
    "hypersim_val": "hypersim/filename_list_val.txt",
    "vkitti": "vkitti/train.txt",
    "vkitti_val": "vkitti/val.txt",
}
ROOTS = {"hypersim": "hypersim/train", "hypersim_val": "hypersim/val", "vkitti": "vkitti", "vkitti_val": "vkitti"}


@pytest.fixture
def data(tmp_path, rooms_data):
    """A copy of the data that a test may damage."""
    return shutil.copytree(rooms_data, tmp_path / "data")


def listed(data, name):
    """The files of a list."""
    lines = (data / "rooms" / LISTS[name]).read_text().split()
    return [data / "rooms" / ROOTS[name] / file for file in lines]


def delete(data, name, count=None):
    chosen = listed(data, name)[:count]
    for file in chosen:
        file.unlink()
    return len(chosen)


def test_missing_files_are_counted_set_by_set_in_one_message(tmp_path, data, configure):
    for name, count in (("hypersim", 3), ("vkitti", 1), ("hypersim_val", 1)):
        delete(data, name, count)
    with pytest.raises(DataError, match="cannot start") as caught:
        run(configure(tmp_path / "run", f"paths.data={data}"))
    problems = str(caught.value).split("\n- ")[1:]
    assert [problem.split(":")[0] for problem in problems] == [
        "training on hypersim",
        "training on vkitti",
        "validation on hypersim",
    ]
    for problem, name, count in zip(problems, ("hypersim", "vkitti", "hypersim_val"), (3, 1, 1), strict=True):
        assert f"{count} of {len(listed(data, name))} listed files are not there, first " in problem
    assert not {"checkpoints", "config.yaml", "metrics.jsonl"} & set(files(tmp_path / "run"))


def test_cached_latents_need_no_training_images(tmp_path, data, configure, caplog):
    cached = (f"paths.data={data}", f"cache.folder={tmp_path / 'latents'}", "cache.enabled=true")
    cache_latents(configure(tmp_path / "run", *cached))
    held_out = set(listed(data, "hypersim_val") + listed(data, "vkitti_val"))
    for name in ("hypersim", "vkitti"):
        assert not held_out & set(listed(data, name))
        delete(data, name)
    assert run(configure(tmp_path / "validated", *cached))
    assert (tmp_path / "validated/best").is_dir()
    for file in held_out:
        file.unlink()
    caplog.clear()
    assert run(configure(tmp_path / "plain", *cached, "validation=none"))
    assert "no validation and no best/" in caplog.text
    assert (tmp_path / "plain/final").is_dir()
    assert not (tmp_path / "plain/best").exists()
    assert "Not evaluated." in (tmp_path / "plain/final/README.md").read_text()


LEARNED = {
    **{mapping: Target(mapping) for mapping in MAPPINGS},
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
    recipe = replace(
        settings.recipe,
        noise="none",
        mapping=target.mapping,
        far=target.far,
        augmentation=target.augmentation,
        loss=loss,
    )
    return replace(settings, recipe=recipe, train=replace(settings.train, seed=target.seed))


@pytest.mark.parametrize("learned", LEARNED)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_cached_batches_are_those_of_the_pictures(tmp_path, configure, learned, dtype):
    """Of both data sets, with flips; float16 rounds to 11 bits."""
    target, tolerance = LEARNED[learned], {"float32": 1e-6, "float16": 2**-11}[dtype]
    cache = ("cache.enabled=true", f"cache.folder={tmp_path}", f"cache.dtype={dtype}", "cache.batch=3")
    weights = ("data.hypersim.weight=0.5", "data.vkitti.weight=0.5")
    config = configure(tmp_path / "run", *cache, *weights)
    settings = learning(Settings.read(config), target, latents=True, pixels=True)
    sets, backbone = load_inputs(config, settings, [], files=True)
    vae_hash, state = latents_identity(backbone.vae), PartialState(cpu=True)
    for part in sets:
        with torch.no_grad():
            write(part, settings, backbone.vae, vae_hash, state)
    uncached = replace(settings, cache=replace(settings.cache, enabled=False))
    cached, pictures = (mixture_dataset(one, sets, backbone) for one in (settings, uncached))
    for g in range(6):
        batch, wanted = cached[g], encode_batch(backbone.vae, pictures[g], settings.recipe.parts)
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
    part, vae_hash, state = sets[0], latents_identity(backbone.vae), PartialState(cpu=True)
    varied = Augmentation(2, crop=0.6, photometric=0.8)

    def folders(target, *, latents, pixels):
        return [store.folder.name for store in part.stores(settings.cache, target, "", latents=latents, pixels=pixels)]

    def open_cache(target, *, latents, pixels):
        return mixture_dataset(learning(settings, target, latents=latents, pixels=pixels), sets, backbone)

    assert folders(Target(), latents=True, pixels=False) == ["image", "depth"]
    assert folders(Target("disparity", "supervise"), latents=False, pixels=True) == [
        "image",
        "disparity-supervise-pixels",
    ]
    assert folders(Target(seed=1), latents=True, pixels=True) == ["image", "depth", "depth-pixels"]
    augmented = {
        folders(Target(augmentation=replace(varied, **other)), latents=False, pixels=False)[0]
        for other in ({}, {"variants": 3}, {"crop": 0.5}, {"photometric": 0.5})
    }
    augmented.add(folders(Target(augmentation=varied, seed=1), latents=False, pixels=False)[0])
    assert len(augmented) == 5
    assert all(re.fullmatch("image-augmented-[0-9a-f]{8}", folder) for folder in augmented)
    cache_latents(config)
    assert sorted(path.name for path in (tmp_path / "latents/hypersim").iterdir()) == [".lock", "depth", "image"]
    assert open_cache(Target(), latents=True, pixels=False)[0].depth_norm is None
    with pytest.raises(CacheError, match=r"hypersim/depth-pixels lacks 1 of 1 shards .*cache_latents\.py"):
        open_cache(Target(), latents=False, pixels=True)
    kept = files(tmp_path / "latents")
    with torch.no_grad():
        for one in sets:
            write(
                one, learning(settings, Target("disparity"), latents=False, pixels=True), backbone.vae, vae_hash, state
            )
    assert {name: files(tmp_path / "latents")[name] for name in kept} == kept
    batch = open_cache(Target("disparity"), latents=False, pixels=True)[0]
    assert batch.depth_latent is None
    assert torch.equal(batch.image_latent, open_cache(Target(), latents=True, pixels=False)[0].image_latent)


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
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose("train", [*where, *common, *overrides])

    return compose_with


NONE_OF_THE_OTHERS = {
    "absent": ["data=mine"],
    "weight": ["data=beside", "data.hypersim.weight=0", "data.vkitti.weight=0"],
    "removed": ["data=beside", "~data.hypersim", "~data.vkitti"],
}


@pytest.mark.parametrize("way", NONE_OF_THE_OTHERS)
def test_a_set_of_the_users_trains_alone(tmp_path, compose_with, way):
    assert run(compose_with(*NONE_OF_THE_OTHERS[way], "train.validate_every=3"))
    validated = [line for line in figures(tmp_path / "run") if "loss" not in line]
    assert [set(line) for line in validated] == [{"step", "mine/abs_rel", "mine/delta1"}] * 2
    best = min(validated, key=lambda line: line["mine/abs_rel"])
    card = (tmp_path / "run/best/README.md").read_text()
    assert f"value: {best['mine/abs_rel']}" in card
    assert "- mine: my own terms" in card
    assert "rendered by this package" not in card


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+data.mine.wieght=1"], r"data\.mine: unknown key\(s\) wieght"),
        (["~data.mine.weight"], r"data\.mine: missing key\(s\) weight"),
        (["~data.mine.reader", "~data.mine.transform"], r"data\.mine: missing key\(s\) reader, transform"),
        (["data.mine.weight=-1"], r"data\.mine\.weight: .* got -1"),
        (["data.mine.weight=nan"], r"data\.mine\.weight: .* got nan"),
        (["data.mine.weight=much"], r"data\.mine\.weight: .* got 'much'"),
        (["data.mine=null"], r"data\.mine: .* got None"),
        (["data.mine.weight=0"], "no training set has a weight above 0"),
        (["+data.mine.transform.sise=1"], r"data\.mine\.transform: sise"),
        (["+data.mine.reader.depth=1"], r"data\.mine\.reader: depth"),
        (["+data.mine.held_out.depth=1"], r"mine\.reader: depth"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(compose_with, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(compose_with("data=mine", *overrides))
