"""What configurations promise: the paper's numbers, commands that fit together, successors of retired keys."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from marigold.cli import refuse_null
from marigold.config import ConfigError
from runs import CONFIGS, composed

DATASETS = sorted(path.stem for path in (CONFIGS / "dataset").glob("*.yaml"))


def test_paper_recipe_has_the_papers_numbers():
    config = composed("train", "+exp=hypersim_vkitti")
    train = config.train
    assert (train.steps, train.effective_batch, train.micro_batch, train.lr) == (30_000, 32, 2, 3e-5)
    assert (train.warmup_steps, train.decay_steps, train.final_ratio) == (100, 25_000, 0.01)
    assert (config.data.hypersim.weight, config.data.vkitti.weight, config.flip_probability) == (0.9, 0.1, 0.5)
    assert (config.recipe.noise_strength, config.recipe.noise) == (0.9, "annealed")
    assert config.data.hypersim.transform == {"size": [480, 640], "antialias": False, "quantile": 0.02}
    assert list(config.data.vkitti.reader.crop) == [352, 1216]


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name not in ("motorcycle", "rooms")])
def test_the_commands_that_get_a_data_set_compose(dataset, monkeypatch):
    monkeypatch.setenv("MARIGOLD_DATA", "/elsewhere")
    reader = composed("eval", f"dataset={dataset}").dataset.reader
    commands = [command.split() for command in reader.how_to_get.split(";")]
    found = []
    for (python, script, *arguments), expected in zip(commands, ("download", "prepare"), strict=True):
        assert (python, script) == ("python", f"scripts/{expected}.py")
        found.append(composed(expected, *arguments))
        assert OmegaConf.to_container(found[-1], resolve=True, throw_on_missing=False)[expected]
    assert Path(reader.root).is_relative_to(found[1].out)
    assert found[1].out == f"/elsewhere/{dataset}"
    assert found[1].raw == found[0].out  # what the first brings the second takes


def test_the_choices_of_a_group_that_is_set_to_null_are_named():
    with pytest.raises(ConfigError, match="quickstart"):
        refuse_null(["+exp=null"])
