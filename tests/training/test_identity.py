"""Every key of the configuration is what marigold/identity.py says: it decides numbers, moves rounding, or neither."""

import json
import shutil

import pytest
from omegaconf import OmegaConf

from marigold import train
from marigold.cache_latents import run as cache_latents
from marigold.identity import NOTHING, ROUNDING, covers, decides_nothing, differences, flatten, moves_by_rounding
from marigold.train import run
from marigold.training.settings import make_accelerator
from runs import CONFIGS, OFTEN, composed, weights

TWO_STEPS = ("train.steps=2", "train.validate_every=2")
# Another place for everything, other descriptions, and another validation. NAME stands for each of the two sets.
NEITHER = """
    paths: data=TMP/data runs=TMP
    model: base=TMP/base licence=mit revision=main search=[elsewhere]
    data.hypersim.reader: root=TMP/data/rooms/hypersim/train split_list=TMP/data/0.txt image_size=[48,64]
    data.hypersim.held_out: root=TMP/data/rooms/hypersim/val split_list=TMP/data/1.txt
    data.vkitti.reader: root=TMP/data/rooms/vkitti split_list=TMP/data/2.txt image_size=[48,136]
    data.vkitti.held_out: split_list=TMP/data/3.txt
    data.NAME: licence=other evaluation={processing_resolution:32,clip:[0.1,50.0]}
    data.NAME.reader: name=other how_to_get=ask limit=1000 official_split=NAME/train
    data.NAME.held_out: official_split=NAME/val limit=1
    +data.NAME.reader: cameras={*:[30.0,30.0,32.0,24.0]}
    +data.NAME: reader_for={log:{limit:1}}
    export: default_denoising_steps=2 default_processing_resolution=64 notes=other
    recipe: name=other
    tracker: mode=disabled project=other
    protocol: name=other spaces=[affine_depth]
    validation: steps=2 ensemble_size=2 seed=1 panel=1
    train: select_by=more/delta1 steps=3 log_every=1 checkpoint_every=1 validate_every=1 keep_checkpoints=3
    train: verify_checkpoints=true workers=1 time_limit=1.0
"""
GROUPS = ("run_dir=null", "name=other", "tracker=wandb", "protocol=moge", "+dataset@validation.sets.more=rooms")
# What excludes some of the above: a base that is made instead of loaded, no held-out lists; a cache.
MADE = ("model.maker=runs.made_base", "validation.held_out=false")
CACHE = ("cache.shard_size=5", "cache.batch=3")
# Every cache of the tests has a folder of its own; a recipe that inherits its switches has other switches.
NOT_CHANGED = {"cache.folder", "recipe.inherit"}
LISTS = ("hypersim/filename_list_train", "hypersim/filename_list_val", "vkitti/train", "vkitti/val")


def table(text, tmp=""):
    """The overrides of a table of nodes and their keys."""
    both = [line.replace("NAME", name) for line in text.splitlines() for name in ("hypersim", "vkitti")]
    rows = [line.replace("TMP", str(tmp)).split() for line in dict.fromkeys(both) if line.strip()]
    return [f"{node.rstrip(':')}.{pair}" for node, *pairs in rows for pair in pairs]


def keys(config):
    return flatten(OmegaConf.to_container(config, resolve=True, throw_on_missing=False))


def recorded(folder):
    """The identity that a run recorded."""
    manifest = folder / "checkpoints/step_000002/training_state/manifest.json"
    return json.loads(manifest.read_text())["metadata"]["identity"]


def assert_same_two_steps(one, two, changed):
    assert recorded(one) == recorded(two)
    same = weights(one / "checkpoints/step_000002") == weights(two / "checkpoints/step_000002")
    assert same, f"one of these decides numbers: {', '.join(changed)}"


@pytest.mark.slow
def test_keys_that_decide_nothing_move_no_bit(tmp_path, whole, configure, rooms_data, random_base):
    data, base = tmp_path / "data", tmp_path / "base"
    shutil.copytree(rooms_data, data)
    shutil.copytree(random_base, base)
    for number, split_list in enumerate(LISTS):
        (data / f"rooms/{split_list}.txt").rename(data / f"{number}.txt")
    for folder, overrides in (("other", [*GROUPS, *table(NEITHER, tmp_path)]), ("made", MADE)):
        assert run(configure(tmp_path / folder, *TWO_STEPS, *overrides))
        assert_same_two_steps(tmp_path / folder, whole, overrides)


def test_keys_of_the_cache_that_decide_nothing_move_no_bit(tmp_path, configure):
    for name, overrides in (("one", ()), ("two", CACHE)):
        where = ("cache.enabled=true", f"cache.folder={tmp_path / name / 'latents'}")
        config = configure(tmp_path / name, *TWO_STEPS, *where, *overrides)
        cache_latents(config)
        assert run(config)
    assert_same_two_steps(tmp_path / "one", tmp_path / "two", CACHE)
    assert {"cache.enabled", "cache.dtype", "cache.precision"} <= set(recorded(tmp_path / "one"))


def test_every_other_key_is_compared(tmp_path, whole, configure):
    """A new setting that decides nothing is to be added to NEITHER and to marigold/identity.py."""
    plain = configure(tmp_path / "plain", *TWO_STEPS)
    nothing, rounding = (set(filter(of, keys(plain))) for of in (decides_nothing, moves_by_rounding))
    assert not nothing & rounding
    numbers = keys(plain).keys() - nothing - {"precision", "cache.dtype", "cache.precision"}
    assert numbers <= recorded(whole).keys() | {"device"}
    groups = ([*GROUPS, *table(NEITHER, tmp_path)], MADE, CACHE)
    others = [keys(configure(tmp_path / "run", *TWO_STEPS, *group)) for group in groups]
    changed = {one.key for other in others for one in differences(keys(plain), other)}
    assert {key for key in changed if not decides_nothing(key)} == set()
    assert nothing - changed - NOT_CHANGED == set()


def test_no_pattern_is_dead():
    every = [keys(composed("eval", f"dataset={path.stem}")) for path in (CONFIGS / "dataset").glob("*.yaml")]
    every += [keys(composed("train", "+exp=quickstart", "+dataset@data.kitti=kitti"))]
    every += [keys(composed("train", "data=teacher"))]
    known = {key for found in every for key in found} | {"processes"}  # a fact of the launch
    assert [pattern for pattern in (*ROUNDING, *NOTHING) if not any(covers(pattern, key) for key in known)] == []


@pytest.mark.parametrize(("key", "override"), [("performance.channels_last", "true"), ("precision", "auto")])
def test_other_rounding_is_warned_of_once_and_resumed(tmp_path, key, override, whole, configure, monkeypatch, caplog):
    shutil.copytree(whole, tmp_path / "run")
    if key == "precision":  # as a card with bf16 would have it
        monkeypatch.setattr(train, "make_accelerator", lambda _, device: make_accelerator("bf16", device))
    caplog.clear()
    assert run(configure(tmp_path / "run", *OFTEN, "train.steps=5", f"{key}={override}"))
    assert (tmp_path / "run/checkpoints/step_000005").exists()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [key in message for message in warnings] == [True]
