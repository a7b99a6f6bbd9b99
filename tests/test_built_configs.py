"""Every configuration is built, not only composed, on a data folder as the documented commands leave it.

Real: the lists and the look-up of every listed name, the first sample of each set at its real size, protocols,
mixture, networks of Stable Diffusion 2's shapes, objective and optimiser. Stubbed: the content of the data (see
stub_tree.py), weights and their hashes (all networks are on the meta device, which has shapes and no values), the
latents of a cache, the steps after the first one, and, for downloads and the publishers' preparations, the function
that the configuration's checked arguments go to.
"""

import functools
import importlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from omegaconf import DictConfig, OmegaConf

import marigold.cache_latents
import marigold.inputs
import marigold.miniature.random_base
import marigold.model.base
import marigold.prepare
import marigold.train
from marigold.config import build
from marigold.data import base
from marigold.data.base import DepthDataset
from marigold.data.latent_cache import LatentBatch
from marigold.data.splits import KNOWN_SPLITS, Line
from marigold.evaluate import EvalSettings
from marigold.evaluation_set import make_protocol, named_protocol, open_set, reader_of
from marigold.miniature.random_base import build_sd2_sized
from marigold.model.backbone import Backbone
from marigold.model.base import ModelConfig, random_unet_like
from marigold.model.recipe import Switches
from marigold.train import TrainingRun
from marigold.types import DepthSample, Prediction
from runs import CONFIGS, composed
from stub_tree import write_tree

RECIPES = ("quickstart", "hypersim_vkitti")


def names(group: str) -> list[str]:
    """The choices of a group of configurations."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("tree")
    write_tree(root)
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (root / "checkpoints/stable-diffusion-2" / part).mkdir(parents=True)
    (root / "checkpoints/stable-diffusion-2/model_index.json").write_text("{}")
    yield root
    shutil.rmtree(root)  # 51,000 names, which pytest would keep three times


@pytest.fixture(scope="module")
def once() -> dict[str, Any]:
    """What was loaded or looked up before, by all that it depends on."""
    return {}


@pytest.fixture(autouse=True)
def at_home(tree: Path, once: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder where a user gives commands: every path is the configuration's own."""
    monkeypatch.chdir(tree)
    for variable in ("MARIGOLD_DATA", "MARIGOLD_DOWNLOADS", "MARIGOLD_RUNS"):
        monkeypatch.delenv(variable, raising=False)
    read_split, check_files = base.read_split, DepthDataset.check_files

    def read_once(path: str, *, columns: int) -> list[Line]:
        key = f"{path} {columns}"
        once[key] = once.get(key) or read_split(path, columns=columns)
        return once[key]

    def check_once(samples: DepthDataset) -> None:
        key = repr([type(samples), samples.root, samples.content["lines"], samples.image_size, samples.crop])
        once[key] = once.get(key) or check_files(samples) or True

    monkeypatch.setattr(base, "read_split", read_once)
    monkeypatch.setattr(DepthDataset, "check_files", check_once)


class MetaState(PartialState):
    """The process, on the meta device."""

    device = property(lambda self: torch.device("meta"), lambda self, device: None)


@pytest.fixture
def start(
    once: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., TrainingRun]]:
    """start(*overrides): scripts/train.py up to its first step, after scripts/cache_latents.py where it is needed."""
    runs: list[TrainingRun] = []
    load_trainable = marigold.inputs.load_trainable

    def load_once(model: ModelConfig, switches: Switches, scheduler: dict[str, Any], seed: int) -> Backbone:
        key = repr([model, switches, scheduler, seed])
        once[key] = once.get(key) or load_trainable(model, switches, scheduler, seed)
        return once[key]

    PartialState(cpu=True)
    monkeypatch.setattr(Accelerator, "device", MetaState.device)
    load_base = marigold.model.base.load_base
    for module, function, stub in (
        (marigold.miniature.random_base, "build_sd2_sized", on_meta(build_sd2_sized)),
        (marigold.model.base, "random_unet_like", on_meta(random_unet_like)),
        (
            marigold.model.base,
            "load_base",
            lambda folder: on_meta(build_sd2_sized)() if folder.name == "stable-diffusion-2" else load_base(folder),
        ),
        (marigold.inputs, "load_trainable", load_once),
        (marigold.inputs, "base_identity", lambda backbone: "base"),
        (marigold.inputs, "latents_identity", lambda vae: "vae"),
        (marigold.cache_latents, "latents_identity", lambda vae: "vae"),
        (marigold.cache_latents, "PartialState", MetaState),
        (marigold.cache_latents, "encode", no_latents),
        (marigold.train.provenance, "write", lambda folder, processes: None),
        (marigold.train, "train", lambda run, checkpoint: bool(runs.append(run))),
    ):
        monkeypatch.setattr(module, function, stub)

    def start(*overrides: str) -> TrainingRun:
        config = composed(
            "train", "device=cpu", f"run_dir={tmp_path}/run", f"cache.folder={tmp_path}/cache", *overrides
        )
        if config.cache.enabled:
            marigold.cache_latents.run(config)
        marigold.train.run(config)
        return runs.pop()

    return start


def on_meta(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def made(*arguments: Any, **named: Any) -> Any:
        with torch.device("meta"):
            return make(*arguments, **named)

    return made


def no_latents(
    vae: object, source: Any, autocast: object, indices: Any, flips: Any, variants: Any, parts: Any
) -> LatentBatch:
    source.batch(indices[:1], flips[:1], variants[:1])
    count, chosen = len(indices), tuple(source.names[index] for index in indices)
    image, depth = torch.zeros(2, count, 4, 1, 1)
    return LatentBatch(chosen, image, depth, torch.ones(count, 1, 1, 1, dtype=torch.bool))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("experiment", names("exp"))
def test_every_experiment_starts_on_every_recipe(start, recipe, experiment):
    chosen = [recipe] if experiment == recipe else [recipe, experiment]
    # Of Virtual KITTI's 20,148 images, whose look-up is the same without a cache.
    few = ["data.vkitti.reader.limit=16"] if chosen == ["hypersim_vkitti", "cached_latents"] else []
    run = start(f"+exp=[{','.join(chosen)}]", "validation=paper", *few)
    assert run.model.backbone.unet.conv_in.in_channels == 8
    assert run.settings.train.effective_batch % run.settings.train.micro_batch == 0
    assert sum(part.weight for part in run.sets) == pytest.approx(1)
    assert [part.name for part in run.validation_sets] == [*(part.name for part in run.sets), "nyu", "kitti"]
    assert run.select_by == f"{run.sets[0].name}/abs_rel"
    assert len(run.trainer.optimizer.param_groups[0]["params"]) == len(list(run.model.backbone.unet.parameters()))


# What a user has to say beside data=NAME, and the sets' weights; those of the paper are validated on.
SETS = {"teacher": (["data.teacher.reader.space=affine_depth"], {"teacher": 1.0})}
PAPER: tuple[list[str], dict[str, float]] = ([], {"hypersim": 0.9, "vkitti": 0.1})


@pytest.mark.parametrize("data", names("data"))
@pytest.mark.parametrize("validation", names("validation"))
def test_training_starts_on_every_data_and_validation(start, data, validation):
    said, weights = SETS.get(data, PAPER)
    run = start("+exp=hypersim_vkitti", f"data={data}", f"validation={validation}", *said)
    held_out = [] if validation == "none" or data in SETS else list(weights)
    assert [part.name for part in run.validation_sets] == held_out + (
        ["nyu", "kitti"] if validation == "paper" else []
    )
    assert run.select_by == (f"{run.validation_sets[0].name}/abs_rel" if run.validation_sets else None)
    assert {part.name: part.weight for part in run.sets} == weights


def test_the_headline_commands_first_loss_has_its_shapes(start):
    run = start("+exp=hypersim_vkitti")
    batch = run.trainer.data[0]
    assert batch.image_norm.shape[-2:] == (480, 640)
    loss = run.trainer.objective(run.trainer.unet, batch, 0)
    assert (loss.shape, loss.requires_grad) == ((), True)


def test_adapters_of_the_headline_command_train_on_a_few_numbers(start):
    """Rank r of a projection from m to n channels takes r (m + n) of them; 16 transformer blocks of width d."""
    run = start("+exp=hypersim_vkitti", "model.lora.rank=64")
    widths = [320] * 5 + [640] * 5 + [1280] * 6  # levels of two blocks down and three up, and the middle
    projections = sum(8 * d + 4 * d + 2 * (1024 + d) for d in widths)  # the prompt has 1024 channels
    conv_in = 320 * (8 * 9 + 1)
    trained = run.trainer.optimizer.param_groups[0]["params"]
    assert sum(parameter.numel() for parameter in trained) == 64 * projections + conv_in == 13_302_592


@pytest.mark.parametrize("dataset", names("dataset"))
def test_every_data_set_is_read_under_every_protocol(dataset):
    config = composed("eval", f"dataset={dataset}", "predictor=module:function", "device=cpu")
    EvalSettings.read(config)
    read: dict[str, Any] = {}
    for protocol in names("protocol"):
        node = named_protocol(config, protocol)
        reader = json.dumps(OmegaConf.to_container(reader_of(config.dataset, protocol)))
        if reader not in read:  # two protocols differ in the reader of one set
            read[reader] = open_set(config, None, node).samples[0]
        made = make_protocol(node, config.dataset)
        assert made.name == protocol
        shown = made.shown(read[reader])
        if shown.image.shape[-1] > 4000:  # seconds for each fit of ETH3D's 24 million pixels
            thinned = (part[..., ::8, ::8] for part in (shown.image, shown.depth, shown.valid))
            shown = DepthSample(shown.name, *thinned)
        aligned = made.align(Prediction(shown.depth[None].clamp_min(1e-3), None, "metric_depth"), shown)
        assert aligned.valid.any()
        assert torch.allclose(aligned.depth[aligned.valid], aligned.target[aligned.valid], rtol=1e-3)


@pytest.mark.parametrize("dataset", names("check"))
def test_every_list_of_a_data_set_can_be_checked(dataset, capsys):
    assert marigold.prepare.run(composed("prepare", f"dataset={dataset}", "action=check", "dataset.reader.limit=1"))
    out = capsys.readouterr().out
    assert out.count(": 1 samples checked") == len(OmegaConf.load(CONFIGS / f"check/{dataset}.yaml"))
    assert "not checked" not in out


@pytest.mark.parametrize("dataset", names("prepare"))
def test_the_arguments_of_every_preparation_fit(dataset, monkeypatch):
    config = composed("prepare", f"dataset={dataset}")
    given = arguments_of(config.prepare, monkeypatch)
    for source in config.archives.get(dataset, {"publisher": None}):
        config.source, config.dry_run = source, True
        found = given()
        assert found.get("dry_run", True) is True
        assert (found.get("archive") is None) == (source == "publisher")
        assert found["out"] == f"data/{dataset}"


@pytest.mark.parametrize("dataset", names("download"))
def test_the_arguments_of_every_download_fit(dataset, monkeypatch):
    config = composed("download", f"dataset={dataset}", "dry_run=true")
    for source, node in config.download.items():
        given = arguments_of(node, monkeypatch)
        config.source = source
        found = given()
        if "reason" not in found:
            assert (found["settings"].out, found["settings"].dry_run) == (f"downloads/{dataset}", True)


def arguments_of(node: DictConfig, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """A function that builds the node and gives the checked arguments that its target would be called with."""
    module, _, name = node._target_.rpartition(".")
    target = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(f"{module}.{name}", functools.wraps(target)(lambda **arguments: arguments))
    return lambda: build(node, "node")


def test_every_official_split_is_a_known_one():
    text = "".join(path.read_text() for path in CONFIGS.rglob("*.yaml"))
    assert set(re.findall(r"official_split: (\S+)", text)) - set(KNOWN_SPLITS) == {"null"}
