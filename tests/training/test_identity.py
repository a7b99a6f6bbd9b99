"""Every key of the configuration is what marigold/identity.py says: it decides numbers, moves rounding, or neither."""

import json
import shutil

import pytest
from omegaconf import OmegaConf

from marigold import train
from marigold.cache_latents import run as cache_latents
from marigold.identity import NOTHING, ROUNDING, covers, decides_nothing, differences, flatten, moves_by_rounding
from marigold.train import run
from marigold.training.checkpoint import load_latest
from marigold.training.settings import TrainingError, make_accelerator
from runs import CONFIGS, composed, weights

TWO_STEPS = ("train.steps=2", "train.validate_every=2")
NOT_IN_THE_CONFIGURATION = {"processes"}  # a fact of the launch
# Another value of every key that decides numbers; all of them are valid together.
OTHER = """
    model: random_unet=true lora.rank=2 lora.alpha=1
    data.NAME.reader: _target_=marigold.data.base.DepthDataset min_depth=0.5 max_depth=60.0
    data.hypersim.reader: crop=[40,56]
    data.vkitti.reader: crop=[40,96]
    data.NAME: weight=0.4 transform.size=[32,48] transform.antialias=true transform.quantile=0.05
    recipe: noise_strength=0.5 noise=gaussian terminal_share=0.0 timesteps=terminal mapping=disparity far=supervise
    recipe: prediction=sample prompt_tokens=77 reconstruct=1.0 zero_terminal_snr=false timestep_spacing=leading
    recipe.augmentation: variants=2 crop=0.7 photometric=0.5
    recipe.loss.latent: term=marigold.training.losses.l1 domain=pixels weight=2.0
    train: effective_batch=8 micro_batch=1 lr=0.001 warmup_steps=1 decay_steps=100 final_ratio=0.5 schedule=constant
    train: weight_decay=0.1 optimizer=adam8bit max_grad_norm=0.5 ema_decay=0.5 seed=1
"""
OF_THE_CACHE = {"cache.dtype": "float16", "cache.precision": "bf16"}  # they count where there is one


def keys(config):
    return flatten(OmegaConf.to_container(config, resolve=True, throw_on_missing=False))


def of_two_steps(folder):
    """The U-Net's bytes after two steps, and what the run says it depends on."""
    checkpoint = folder / "checkpoints/step_000002"
    recorded = json.loads((checkpoint / "training_state/manifest.json").read_text())["metadata"]["identity"]
    return weights(checkpoint), recorded


@pytest.fixture(scope="module")
def reference(tmp_path_factory, configure):
    """Two steps with the fixtures' values: the folder and the configuration."""
    folder = tmp_path_factory.mktemp("images")
    config = configure(folder, *TWO_STEPS)
    assert run(config)
    return folder, config


@pytest.fixture(scope="module")
def cached(tmp_path_factory, configure):
    """The same from cached latents."""
    folder = tmp_path_factory.mktemp("cached")
    config = configure(folder, *TWO_STEPS, "cache.enabled=true", f"cache.folder={folder / 'latents'}")
    cache_latents(config)
    assert run(config)
    return folder, config


def table(text, **values):
    """Overrides of a table of nodes and their keys; a row of NAME is one of each training set."""
    both = [line.replace("NAME", name) for line in text.splitlines() for name in ("hypersim", "vkitti")]
    rows = [line.split() for line in dict.fromkeys(both) if line.strip()]
    return [f"{node.rstrip(':')}.{pair}".format(**values) for node, *pairs in rows for pair in pairs]


OTHER_OVERRIDES = ["precision=bf16", "flip_probability=0.25", *table(OTHER)]
OTHER_KEYS = [override.partition("=")[0] for override in OTHER_OVERRIDES]


def place(tmp, data, base):
    """Where everything lies: in another folder, its lists under other names."""
    moved = {"data": shutil.copytree(data, tmp / "data"), "base": shutil.copytree(base, tmp / "base")}
    lists = ("hypersim/filename_list_train", "hypersim/filename_list_val", "vkitti/train", "vkitti/val")
    for number, split_list in enumerate(lists):
        (moved["data"] / f"rooms/{split_list}.txt").rename(moved["data"] / f"{number}.txt")
    return table(PLACE, **moved)


PLACE = """
    paths: data={data}
    model: base={base}
    data.hypersim.reader: root={data}/rooms/hypersim/train split_list={data}/0.txt
    data.hypersim.held_out: root={data}/rooms/hypersim/val split_list={data}/1.txt
    data.vkitti.reader: root={data}/rooms/vkitti split_list={data}/2.txt
    data.vkitti.held_out: split_list={data}/3.txt
"""
# What is said of the run and its parts, and checks that change nothing where they pass.
WORDS = """
    data.NAME: licence=other
    data.NAME.reader: name=other how_to_get=ask limit=1000 official_split=NAME/train
    +data.NAME.reader: cameras={{*:[30.0,30.0,32.0,24.0]}}
    +data.NAME: reader_for={{log:{{limit:1}}}}
    data.hypersim.reader: image_size=[48,64]
    data.vkitti.reader: image_size=[48,136]
    export: default_denoising_steps=2 default_processing_resolution=64 notes=other
    model: licence=mit revision=main search=[elsewhere]
    recipe: name=other
    paths: runs={tmp}
    tracker: mode=disabled project=other
"""
# How it is validated, on what and how often.
VALIDATION = """
    data.NAME: evaluation={{processing_resolution:32,clip:[0.1,50.0]}}
    data.NAME.held_out: official_split=NAME/val limit=1
    protocol: name=other spaces=[affine_depth]
    validation: steps=2 ensemble_size=2 seed=1 panel=1
    train: select_by=more/delta1 steps=3 log_every=1 checkpoint_every=1 validate_every=1 keep_checkpoints=3
    train: verify_checkpoints=true workers=1 time_limit=1.0
"""
GROUPS = {
    "place": place,
    "words": lambda tmp, data, base: ["run_dir=null", "name=words", "tracker=wandb", *table(WORDS, tmp=tmp)],
    "validation": lambda *_: ["protocol=moge", "+dataset@validation.sets.more=rooms", *table(VALIDATION)],
    "maker": lambda *_: ["model.maker=runs.made_base", "validation.held_out=false"],
}
CACHE_GROUP = ("cache.shard_size=5", "cache.batch=3")


# Every cache of the tests has its own folder; whose switches are inherited has other switches.
NOT_CHANGED = {"cache.folder", "recipe.inherit"}


def changed_keys(config, other):
    """The keys whose values differ, as nested settings are compared: all of the ones below."""
    return {one.key for one in differences(keys(config), keys(other))}


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_keys_that_decide_nothing_move_no_bit(tmp_path, group, reference, configure, rooms_data, random_base):
    folder, config = reference
    other = configure(tmp_path / "run", *TWO_STEPS, *GROUPS[group](tmp_path, rooms_data, random_base))
    changed = changed_keys(config, other)
    assert {key for key in changed if not decides_nothing(key)} == set()
    assert run(other)
    end = tmp_path / (other.name or "run")
    same = of_two_steps(end) == of_two_steps(folder)
    assert same, f"one of these decides numbers: {', '.join(sorted(changed))}"


def test_keys_of_the_cache_that_decide_nothing_move_no_bit(tmp_path, cached, configure):
    folder, config = cached
    where = ("cache.enabled=true", f"cache.folder={tmp_path / 'latents'}")
    other = configure(tmp_path / "run", *TWO_STEPS, *where, *CACHE_GROUP)
    cache_latents(other)
    assert run(other)
    changed = changed_keys(config, other)
    same = of_two_steps(tmp_path / "run") == of_two_steps(folder)
    assert same, f"one of these decides numbers: {', '.join(sorted(changed))}"


def test_every_key_is_of_one_class_and_takes_part(tmp_path, configure, rooms_data, random_base):
    """A new setting is to be added to OTHER, or to one of the groups above."""
    found = {key for recipe in ("quickstart", "hypersim_vkitti") for key in keys(composed("train", f"+exp={recipe}"))}
    nothing, rounding = (set(filter(of, found)) for of in (decides_nothing, moves_by_rounding))
    assert not nothing & rounding
    assert found - nothing - rounding == {*OTHER_KEYS, *OF_THE_CACHE, "cache.enabled"}
    plain = configure(tmp_path / "plain", *TWO_STEPS)
    groups = [make(tmp_path, rooms_data, random_base) for make in GROUPS.values()] + [CACHE_GROUP]
    changed = [changed_keys(plain, configure(tmp_path / "run", *TWO_STEPS, *group)) for group in groups]
    assert nothing - set().union(*changed) - NOT_CHANGED == set()


def test_no_pattern_is_dead():
    every = [keys(composed("eval", f"dataset={path.stem}")) for path in (CONFIGS / "dataset").glob("*.yaml")]
    every += [keys(composed("train", "+exp=quickstart", "+dataset@data.kitti=kitti"))]
    every += [keys(composed("train", "data=teacher"))]
    known = {key for found in every for key in found} | NOT_IN_THE_CONFIGURATION
    dead = [pattern for pattern in (*ROUNDING, *NOTHING) if not any(covers(pattern, key) for key in known)]
    assert dead == []


def test_every_key_that_decides_numbers_is_refused_by_name(tmp_path, reference, cached, configure):
    folder, _ = reference
    with pytest.raises(TrainingError, match="holds another run") as caught:
        run(configure(folder, *TWO_STEPS, *OTHER_OVERRIDES))
    assert [key for key in OTHER_KEYS if f"{key}: " not in str(caught.value)] == []
    folder, _ = cached
    with pytest.raises(TrainingError, match=r"cache\.enabled: its checkpoint True, this run False"):
        run(configure(folder, *TWO_STEPS))
    where = ("cache.enabled=true", f"cache.folder={tmp_path / 'latents'}")
    other = configure(folder, *TWO_STEPS, *where, *(f"{key}={value}" for key, value in OF_THE_CACHE.items()))
    cache_latents(other)
    with pytest.raises(TrainingError, match="holds another run") as caught:
        run(other)
    assert [key for key in OF_THE_CACHE if f"{key}: " not in str(caught.value)] == []


@pytest.mark.parametrize(("key", "override"), [("performance.channels_last", "true"), ("precision", "auto")])
def test_other_rounding_is_said_once_and_resumed(tmp_path, key, override, reference, configure, monkeypatch, caplog):
    shutil.copytree(reference[0], tmp_path / "run")
    if key == "precision":  # as a card with bf16 would have it
        monkeypatch.setattr(train, "make_accelerator", lambda _, device: make_accelerator("bf16", device))
    caplog.clear()
    assert run(configure(tmp_path / "run", "train.steps=3", f"{key}={override}"))
    assert load_latest(tmp_path / "run/checkpoints").step == 3
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [key in message for message in said] == [True]
