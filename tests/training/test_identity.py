"""Every key of the configuration is what marigold/identity.py says: it decides numbers, moves rounding, or neither."""

import json
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from marigold import train
from marigold.cache_latents import run as cache_latents
from marigold.identity import NOTHING, ROUNDING, covers, decides_nothing, differences, flatten, moves_by_rounding
from marigold.train import run
from marigold.training.checkpoint import load_latest
from marigold.training.settings import TrainingError, make_accelerator

CONFIGS = Path(__file__).parent.parent.parent / "configs"
TWO_STEPS = ("train.steps=2", "train.validate_every=2")
NOT_IN_THE_CONFIGURATION = {"processes"}  # a fact of the launch
# Another value of every key that decides numbers; all of them are valid together.
OTHER = {
    "model.random_unet": "true",
    "data.hypersim.reader._target_": "marigold.data.base.DepthDataset",
    "data.hypersim.reader.min_depth": "0.5",
    "data.hypersim.reader.max_depth": "60.0",
    "data.hypersim.reader.crop": "[40,56]",
    "data.hypersim.weight": "0.5",
    "data.hypersim.transform.size": "[32,48]",
    "data.hypersim.transform.antialias": "true",
    "data.hypersim.transform.quantile": "0.05",
    "data.vkitti.reader._target_": "marigold.data.base.DepthDataset",
    "data.vkitti.reader.min_depth": "0.5",
    "data.vkitti.reader.max_depth": "70.0",
    "data.vkitti.reader.crop": "[40,96]",
    "data.vkitti.weight": "0.4",
    "data.vkitti.transform.size": "[32,64]",
    "data.vkitti.transform.antialias": "true",
    "data.vkitti.transform.quantile": "0.05",
    "recipe.noise_strength": "0.5",
    "recipe.noise": "gaussian",
    "recipe.terminal_share": "0.0",
    "recipe.timesteps": "terminal",
    "recipe.mapping": "disparity",
    "recipe.far": "supervise",
    "recipe.prediction": "sample",
    "recipe.prompt_tokens": "77",
    "recipe.reconstruct": "1.0",
    "recipe.augmentation.variants": "2",
    "recipe.augmentation.crop": "0.7",
    "recipe.augmentation.photometric": "0.5",
    "recipe.loss.latent.term": "marigold.training.losses.l1",
    "recipe.loss.latent.domain": "pixels",
    "recipe.loss.latent.weight": "2.0",
    "precision": "bf16",
    "flip_probability": "0.25",
    "recipe.zero_terminal_snr": "false",
    "recipe.timestep_spacing": "leading",
    "train.effective_batch": "8",
    "train.micro_batch": "1",
    "train.lr": "0.001",
    "train.warmup_steps": "1",
    "train.decay_steps": "100",
    "train.final_ratio": "0.5",
    "train.schedule": "constant",
    "train.weight_decay": "0.1",
    "train.optimizer": "adam8bit",
    "train.max_grad_norm": "0.5",
    "train.ema_decay": "0.5",
    "train.seed": "1",
}
OF_THE_CACHE = {"cache.dtype": "float16", "cache.precision": "bf16"}  # they count where there is one


def keys(config):
    return flatten(OmegaConf.to_container(config, resolve=True))


def composed(name, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(compose(name, list(overrides)), resolve=True, throw_on_missing=False)


def of_two_steps(folder):
    """The U-Net's bytes after two steps, and what the run says it depends on."""
    checkpoint = folder / "checkpoints/step_000002"
    recorded = json.loads((checkpoint / "training_state/manifest.json").read_text())["metadata"]["identity"]
    return (checkpoint / "unet/diffusion_pytorch_model.safetensors").read_bytes(), recorded


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("identity")


@pytest.fixture
def reference(module_folder, configure):
    """Two steps with the fixtures' values: the folder and the configuration."""
    config = configure(module_folder / "images", *TWO_STEPS)
    if not (module_folder / "images/final").exists():
        assert run(config)
    return module_folder / "images", config


@pytest.fixture
def cached(module_folder, configure):
    """The same from cached latents."""
    overrides = (*TWO_STEPS, "cache.enabled=true", f"cache.folder={module_folder / 'latents'}")
    config = configure(module_folder / "cached", *overrides)
    if not (module_folder / "cached/final").exists():
        cache_latents(config)
        assert run(config)
    return module_folder / "cached", config


def lists_and_roots(data, other):
    """Where everything lies: in another folder, its lists under other names."""
    shutil.copytree(data, other)
    overrides = [f"paths.data={other}"]
    places = (
        ("hypersim.reader", "hypersim/train", "hypersim/filename_list_train.txt"),
        ("hypersim.held_out", "hypersim/val", "hypersim/filename_list_val.txt"),
        ("vkitti.reader", "vkitti", "vkitti/train.txt"),
        ("vkitti.held_out", None, "vkitti/val.txt"),
    )
    for node, root, split_list in places:
        moved = (other / "rooms" / split_list).rename(other / f"{node}.txt")
        overrides += [f"data.{node}.split_list={moved}"]
        overrides += [f"data.{node}.root={other / 'rooms' / root}"] if root else []
    return overrides


def words(tmp_path):
    """What is said of the run and its parts, and checks that change nothing where they pass."""
    sets = [
        override
        for name, size in (("hypersim", "[48,64]"), ("vkitti", "[48,136]"))
        for override in (
            f"data.{name}.licence=other",
            f"data.{name}.reader.name=other",
            f"data.{name}.reader.how_to_get=ask",
            f"data.{name}.reader.image_size={size}",
            f"data.{name}.reader.limit=1000",
            f"data.{name}.reader.official_split={name}/train",
            f"+data.{name}.reader.cameras={{*:[30.0,30.0,32.0,24.0]}}",
            f"+data.{name}.reader_for={{log:{{limit:1}}}}",
        )
    ]
    export = ["export.default_denoising_steps=2", "export.default_processing_resolution=64", "export.notes=other"]
    model = ["model.licence=mit", "model.revision=main", "model.search=[elsewhere]"]
    return ["run_dir=null", "name=words", "recipe.name=other", f"paths.runs={tmp_path}", *sets, *export, *model]


def validation(base):
    """How it is validated, and on what."""
    sets = [
        override
        for name in ("hypersim", "vkitti")
        for override in (
            f"data.{name}.evaluation={{processing_resolution:32,clip:[0.1,50.0]}}",
            f"data.{name}.held_out.official_split={name}/val",
            f"data.{name}.held_out.limit=1",
        )
    ]
    protocol = ["protocol=moge", "protocol.name=other", "protocol.spaces=[affine_depth]"]
    sampling = [f"validation.{key}" for key in ("steps=2", "ensemble_size=2", "seed=1", "panel=1")]
    return [*sets, *protocol, *sampling, "+dataset@validation.sets.more=rooms", "train.select_by=more/delta1"]


GROUPS = {
    "place": lambda tmp, data, base: [
        *lists_and_roots(data, tmp / "data"),
        f"model.base={shutil.copytree(base, tmp / 'base')}",
    ],
    "words": lambda tmp, data, base: words(tmp),
    "validation": lambda tmp, data, base: validation(base),
    "maker": lambda tmp, data, base: ["model.maker=runs.made_base"],
    "pace": lambda tmp, data, base: [
        *("train.steps=3", "train.log_every=1", "train.checkpoint_every=1", "train.validate_every=1"),
        *("train.keep_checkpoints=3", "train.verify_checkpoints=true", "train.workers=1", "train.time_limit=1.0"),
    ],
    "rest": lambda tmp, data, base: [
        *("tracker=wandb", "tracker.mode=disabled", "tracker.project=other", "validation.held_out=false"),
        *("model.base=null", f"model.search=[{tmp / 'nothing'},{base}]"),
    ],
}
CACHE_GROUP = ("cache.shard_size=5", "cache.batch=3")


# Every cache of the tests has its own folder; whose switches are inherited has other switches.
NOT_CHANGED = {"cache.folder", "recipe.inherit"}


def changed_keys(config, other):
    """The keys whose values differ, as nested settings are compared: all of the ones below."""
    return {one.key for one in differences(keys(config), keys(other))}


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
    found = {
        key for recipe in ("quickstart", "hypersim_vkitti") for key in flatten(composed("train", f"+exp={recipe}"))
    }
    nothing, rounding = (set(filter(of, found)) for of in (decides_nothing, moves_by_rounding))
    assert not nothing & rounding
    assert found - nothing - rounding == {*OTHER, *OF_THE_CACHE, "cache.enabled"}
    plain = configure(tmp_path / "plain", *TWO_STEPS)
    groups = [make(tmp_path, rooms_data, random_base) for make in GROUPS.values()] + [CACHE_GROUP]
    changed = [changed_keys(plain, configure(tmp_path / "run", *TWO_STEPS, *group)) for group in groups]
    assert nothing - set().union(*changed) - NOT_CHANGED == set()


def test_no_pattern_is_dead():
    every = [flatten(composed("eval", f"dataset={path.stem}")) for path in (CONFIGS / "dataset").glob("*.yaml")]
    every += [flatten(composed("train", "+exp=quickstart", "+dataset@data.kitti=kitti"))]
    known = {key for found in every for key in found} | NOT_IN_THE_CONFIGURATION
    dead = [pattern for pattern in (*ROUNDING, *NOTHING) if not any(covers(pattern, key) for key in known)]
    assert dead == []


def test_every_key_that_decides_numbers_is_refused_by_name(tmp_path, reference, cached, configure):
    folder, _ = reference
    with pytest.raises(TrainingError, match="holds another run") as caught:
        run(configure(folder, *TWO_STEPS, *(f"{key}={value}" for key, value in OTHER.items())))
    assert [key for key in OTHER if f"{key}: " not in str(caught.value)] == []
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
