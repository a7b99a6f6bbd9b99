"""diffusers' own pipeline and ours give the same depth to 1e-5 for what is exported, and it refuses what is not."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, MarigoldDepthPipeline
from omegaconf import OmegaConf
from tiny_models import in_diffusers, sample_image, start, tiny_model

from marigold.config import to_dataclass
from marigold.depth.mapping import MAPPINGS
from marigold.model.export import ExportError, for_diffusers
from marigold.model.pipeline import MarigoldDepth
from marigold.model.recipe import KEY, Switches
from marigold.training.recipe import Recipe

CONFIGS = Path(__file__).parent.parent.parent / "configs/recipe"
RECIPES = {
    path.stem: to_dataclass(Recipe, recipe)
    for path in sorted(CONFIGS.glob("*.yaml"))
    if not (recipe := OmegaConf.load(path).recipe).inherit
}
# One name for each way of sampling: recipes that differ in their losses alone are one model here.
DIFFERENT = {(one.switches, one.zero_terminal_snr, one.timestep_spacing): name for name, one in RECIPES.items()}
ONE_PASS = [name for name in DIFFERENT.values() if RECIPES[name].switches.one_pass]
MANY_STEPS = [name for name in DIFFERENT.values() if name not in ONE_PASS]
SIZE = (40, 56)
V, EPSILON, SAMPLE = "v_prediction", "epsilon", "sample"


def made_by_recipe(name: str, **changes: object) -> MarigoldDepth:
    recipe = replace(RECIPES[name], **changes)
    scheduler = {"rescale_betas_zero_snr": recipe.zero_terminal_snr, "timestep_spacing": recipe.timestep_spacing}
    return tiny_model(recipe.switches, steps=4, recipe=recipe.stored(), **scheduler)


def check(model: MarigoldDepth, folder: Path) -> MarigoldDepth:
    """Export into `folder` and compare; returns what this package loads from it."""
    for_diffusers(model).save_pretrained(folder)
    theirs, again, image = in_diffusers(folder), MarigoldDepth.from_pretrained(folder), sample_image(*SIZE)
    given = {} if model.switches.silent else {"latents": start(1, *SIZE)}
    ours = model(image, **given).depth
    assert ours.std() > 0.01, "a flat prediction would prove nothing"
    # Without noise no seed counts, on either side.
    generator = torch.Generator().manual_seed(1)
    expected = theirs(image, output_type="pt", **(given or {"generator": generator})).prediction
    for found in (again(image, seed=3, **given).depth, expected):
        torch.testing.assert_close(found, ours, atol=1e-5, rtol=0)
    assert again.space == model.space
    assert theirs.config.prediction_type == ("depth" if MAPPINGS[model.switches.mapping].increasing else "disparity")
    assert theirs.default_denoising_steps == (1 if model.switches.one_pass else 4)
    return again


@pytest.mark.parametrize("name", ONE_PASS)
def test_every_recipe_of_one_pass(name: str, tmp_path: Path):
    """diffusers refuses it as it is, where it would sample wrongly; exporting changes no weight of the model."""
    model = made_by_recipe(name)
    model.save_pretrained(tmp_path / "saved")
    for load in (DiffusionPipeline, MarigoldDepthPipeline):
        with pytest.raises((AttributeError, ValueError)):
            load.from_pretrained(tmp_path / "saved")
    weights = {key: value.clone() for key, value in model.backbone.unet.state_dict().items()}
    exported = check(model, tmp_path / "exported")
    assert exported.settings.recipe["exported_from"] == name
    assert all(torch.equal(value, weights[key]) for key, value in model.backbone.unet.state_dict().items())
    # Saved again, it is still read by diffusers.
    assert "unet" not in exported.settings.index()
    with pytest.raises(ExportError):
        for_diffusers(exported)


@pytest.mark.parametrize(
    ("switches", "scheduler"),
    [
        (Switches(noise="zeros", timesteps="500", prediction=V), {"clip_sample": True}),
        (Switches(noise="zeros", prediction=V, reconstruct=True), {"rescale_betas_zero_snr": True}),
        (Switches(noise="zeros", prediction=EPSILON), {"beta_end": 0.003}),
        (Switches(timesteps="terminal", prediction=EPSILON), {"beta_end": 0.003}),
        (Switches(timesteps="10", prediction=SAMPLE), {}),
        # Many steps, which diffusers' pipeline samples rightly but for the mapping and the task.
        (Switches(mapping="log_depth"), {"timestep_spacing": "trailing"}),
        (Switches(reconstruct=True, prediction=SAMPLE), {}),
    ],
)
def test_combinations_that_no_file_has(switches: Switches, scheduler: dict, tmp_path: Path):
    check(tiny_model(switches, steps=4, **scheduler), tmp_path)


@pytest.mark.parametrize(
    ("switches", "key"),
    [
        (Switches(), "diffusers"),
        (Switches(noise="zeros", prompt_tokens=77), "prompt_tokens=77"),
        (Switches(timesteps="10"), "timesteps=10"),
    ],
)
def test_models_that_cannot_or_need_not_be_exported_are_refused(switches: Switches, key: str):
    with pytest.raises(ExportError, match=key):
        for_diffusers(tiny_model(switches))


@pytest.mark.parametrize(
    ("name", "mapping"), [*((name, RECIPES[name].mapping) for name in MANY_STEPS), ("marigold", "disparity")]
)
def test_recipes_of_many_steps_need_no_export(name: str, mapping: str, tmp_path: Path):
    made_by_recipe(name, mapping=mapping).save_pretrained(tmp_path)
    image, latents = sample_image(*SIZE), start(1, *SIZE)
    ours = MarigoldDepth.from_pretrained(tmp_path)(image, latents=latents)
    assert ours.space == f"affine_{mapping}"
    for load in (DiffusionPipeline, MarigoldDepthPipeline):
        theirs = in_diffusers(tmp_path, load)
        found = theirs(image, latents=latents, output_type="pt").prediction
        torch.testing.assert_close(ours.depth, found, atol=1e-5, rtol=0)
        assert (theirs.config.prediction_type, theirs.default_denoising_steps) == (mapping, 4)


def test_loading_imports_nothing_that_a_checkpoint_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made_by_recipe("one_step").save_pretrained(tmp_path / "model")
    file = tmp_path / "model/model_index.json"
    index = json.loads(file.read_text())
    index[KEY] |= {"_target_": "evil_module.f", "augmentation": {"_target_": "evil_module.f"}}
    index |= {"_target_": "evil_module.f", "unet": ["evil_module", "f"], "_class_name": "evil_module.f"}
    file.write_text(json.dumps(index))
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for_diffusers(MarigoldDepth.from_pretrained(tmp_path / "model"))
    assert "evil_module" not in sys.modules
