"""Every configuration is built, not only composed, on a data folder as the documented commands leave it.

Real: the lists and the look-up of every listed name, the first sample of each set at its real size, protocols,
mixture, objective and optimiser. Stubbed: the content of the data (see stub_tree.py), the runs' networks, which are
tiny, the weights of Stable Diffusion's size (on the meta device, which has shapes and no values), the latents of a
cache, all steps, and, for downloads and the publishers' preparations, the function that the configuration's checked
arguments go to.
"""

import functools
import importlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

import marigold.cache_latents
import marigold.inputs
import marigold.model.base
import marigold.prepare
import marigold.train
from marigold.config import build, to_dataclass
from marigold.data import base
from marigold.data.base import DepthDataset
from marigold.data.latent_cache import LatentBatch
from marigold.data.splits import KNOWN_SPLITS
from marigold.evaluate import EvalSettings
from marigold.evaluation_set import make_protocol, named_protocol, open_set, read_settings, reader_of
from marigold.miniature.random_base import build_sd2_sized
from marigold.model.base import ModelConfig, load_trainable
from marigold.model.lora import Lora
from marigold.model.recipe import Switches
from marigold.train import TrainingRun
from marigold.types import DepthSample, Prediction
from runs import CONFIGS, composed
from stub_tree import write_tree


def names(group: str) -> list[str]:
    """The choices of a group of configurations."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder where a user gives commands: every path is the configuration's own, and looked up once."""
    root, check_files = tmp_path_factory.mktemp("tree"), DepthDataset.check_files
    write_tree(root)
    checked: set[str] = set()

    def check_once(samples: DepthDataset) -> None:
        key = repr([type(samples), samples.root, samples.content["lines"], samples.image_size, samples.crop])
        if key not in checked:
            check_files(samples)
            checked.add(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for variable in ("MARIGOLD_DATA", "MARIGOLD_DOWNLOADS", "MARIGOLD_RUNS"):
            patch.delenv(variable, raising=False)
        patch.setattr(base, "read_split", functools.cache(base.read_split))
        patch.setattr(DepthDataset, "check_files", check_once)
        yield root
    shutil.rmtree(root)  # 51,000 names, which pytest would keep three times


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., TrainingRun]:
    """start(*overrides): scripts/train.py up to its first step, after scripts/cache_latents.py where it is needed."""
    runs: list[TrainingRun] = []

    def tiny(model: ModelConfig, *more: Any) -> Any:
        return load_trainable(replace(model, maker="runs.made_base"), *more)

    monkeypatch.setattr(marigold.inputs, "load_trainable", tiny)
    monkeypatch.setattr(marigold.cache_latents, "encode", no_latents)
    monkeypatch.setattr(marigold.train, "licence", lambda model: None)
    monkeypatch.setattr(marigold.train, "train", lambda run, checkpoint: bool(runs.append(run)))

    def start(*overrides: str) -> TrainingRun:
        places = ("device=cpu", f"run_dir={tmp_path}/run", f"cache.folder={tmp_path}/cache")
        config = composed("train", *places, *overrides)
        if config.cache.enabled:
            marigold.cache_latents.run(config)
        marigold.train.run(config)
        return runs.pop()

    return start


def no_latents(
    vae: object, source: Any, autocast: object, indices: Any, flips: Any, variants: Any, parts: Any
) -> LatentBatch:
    source.batch(indices[:1], flips[:1], variants[:1])
    count, chosen = len(indices), tuple(source.names[index] for index in indices)
    image, depth = torch.zeros(2, count, 4, 1, 1)
    return LatentBatch(chosen, image, depth, torch.ones(count, 1, 1, 1, dtype=torch.bool))


def unless_quick(quick: bool, *values: object) -> Any:
    return pytest.param(*values, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(
    ("recipe", "experiment"),
    [
        *(("hypersim_vkitti", experiment) for experiment in names("exp")),
        *(unless_quick(one in ("quickstart", "marigold"), "quickstart", one) for one in names("exp")),
    ],
)
def test_every_experiment_starts_on_every_recipe(start, recipe, experiment):
    chosen = [recipe] if experiment == recipe else [recipe, experiment]
    # Of Virtual KITTI's 20,148 images, whose look-up is the same without a cache.
    few = ["data.vkitti.reader.limit=16"] if chosen == ["hypersim_vkitti", "cached_latents"] else []
    run = start(f"+exp=[{','.join(chosen)}]", "validation=paper", *few)
    assert run.model.backbone.unet.conv_in.in_channels == (4 if run.settings.recipe.noise == "none" else 8)
    assert sum(part.weight for part in run.sets) == pytest.approx(1)
    assert [part.name for part in run.validation_sets] == [*(part.name for part in run.sets), "nyu", "kitti"]
    assert run.select_by == f"{run.sets[0].name}/abs_rel"
    if chosen == ["hypersim_vkitti"]:  # the headline command, whose first loss has its shapes
        batch = run.trainer.data[0]
        assert batch.image_norm.shape[-2:] == (480, 640)
        loss = run.trainer.objective(run.trainer.unet, batch, 0)
        assert (loss.shape, loss.requires_grad) == ((), True)


@pytest.mark.parametrize(
    ("data", "validation"),
    [
        *((data, "held_out") for data in names("data")),
        *(("hypersim_vkitti", one) for one in names("validation") if one not in ("held_out", "paper")),
    ],
)
def test_training_starts_on_every_data_and_validation(start, data, validation):
    taught = data == "teacher"
    given = ["data.teacher.reader.space=affine_depth"] if taught else []
    run = start("+exp=hypersim_vkitti", f"data={data}", f"validation={validation}", *given)
    weights = {"teacher": 1.0} if taught else {"hypersim": 0.9, "vkitti": 0.1}
    assert {part.name: part.weight for part in run.sets} == weights
    assert [part.name for part in run.validation_sets] == ([] if taught or validation == "none" else list(weights))
    assert run.select_by == (f"{run.validation_sets[0].name}/abs_rel" if run.validation_sets else None)


def load(model: ModelConfig) -> Any:
    """The base of a training, its networks of Stable Diffusion's size without numbers."""
    with torch.device("cpu" if "tiny" in model.location else "meta"):
        return load_trainable(model, Switches(), {}, seed=0).unet


@pytest.mark.parametrize("name", names("model"))
def test_every_base_gets_the_inputs_of_a_depth_model(tree, name, monkeypatch):
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (tree / "checkpoints/stable-diffusion-2" / part).mkdir(parents=True, exist_ok=True)
    (tree / "checkpoints/stable-diffusion-2/model_index.json").write_text("{}")
    load_base = marigold.model.base.load_base
    monkeypatch.setattr(
        marigold.model.base, "load_base", lambda place: load_base(place) if name == "tiny" else build_sd2_sized()
    )
    unet = load(to_dataclass(ModelConfig, composed("train", f"model={name}").model))
    assert unet.conv_in.in_channels == 8


def test_adapters_of_stable_diffusion_train_on_a_few_numbers():
    """Rank r of a projection from m to n channels takes r (m + n) of them; 16 transformer blocks of width d."""
    widths = [320] * 5 + [640] * 5 + [1280] * 6  # levels of two blocks down and three up, and the middle
    projections = sum(8 * d + 4 * d + 2 * (1024 + d) for d in widths)  # the prompt has 1024 channels
    conv_in = 320 * (8 * 9 + 1)
    model = to_dataclass(ModelConfig, composed("train", "model=sd2_random").model)
    unet = load(replace(model, lora=Lora(64, None)))
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    assert trained == 64 * projections + conv_in == 13_302_592


# Of 24 and of 5 million pixels.
@pytest.mark.parametrize(
    "dataset", [unless_quick(one not in ("eth3d", "motorcycle"), one) for one in names("dataset")]
)
def test_every_data_set_is_read_under_every_protocol(dataset):
    config = composed("eval", f"dataset={dataset}", "predictor=module:function", "device=cpu")
    read_settings(EvalSettings, config)
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
