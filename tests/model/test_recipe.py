"""The recipe that a checkpoint stores, and how a model of one pass predicts."""

import json

import pytest
import torch
from tiny_models import tiny_model

from marigold.model.backbone import Backbone, BaseModelError, task_labels
from marigold.model.pipeline import DepthSettings, MarigoldDepth
from marigold.model.recipe import KEY, RecipeError, Switches

ZEROS = Switches(mapping="log_depth", noise="zeros", timesteps="terminal", prompt_tokens=77)
NONE = Switches(mapping="disparity", noise="none", timesteps="1", prediction="sample", reconstruct=True)
IMAGE = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("switches", [ZEROS, NONE])
def test_without_noise_a_prediction_depends_on_no_seed_and_survives_saving(switches, tmp_path):
    model = tiny_model(switches)
    made = model(IMAGE, seed=0)
    assert (made.space, made.uncertainty) == (switches.space, None)
    assert torch.equal(made.depth, model(IMAGE, seed=5).depth)
    assert made.depth.std() > 0
    again = MarigoldDepth.from_pretrained(model.save_pretrained(tmp_path))
    assert again.switches == switches
    assert torch.equal(again(IMAGE).depth, made.depth)
    for refused in ({"ensemble_size": 2}, {"steps": 2}, {"latents": torch.zeros(2, 4, 4, 6)}):
        with pytest.raises(ValueError, match=next(iter(refused))):
            model(IMAGE, **refused)


def test_one_pass_from_noise_takes_members_and_seeds():
    model = tiny_model(Switches(noise="gaussian", timesteps="terminal", prediction="sample"))
    assert not torch.equal(model(IMAGE, seed=0).depth, model(IMAGE, seed=1).depth)
    assert model(IMAGE, ensemble_size=3).uncertainty is not None
    with pytest.raises(RecipeError, match="steps"):
        model(IMAGE, steps=2)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["v_prediction", "sample", "epsilon"])
def test_one_pass_is_the_formula(prediction):
    """x0 = -sqrt(1 - abar) v, x0 itself, -sqrt(1 - abar) / sqrt(abar) epsilon: from zeros, at the last timestep."""
    model = tiny_model(Switches(noise="zeros", timesteps="terminal", prediction=prediction))
    unet, vae = model.backbone.unet, model.backbone.vae
    latent = 0.18215 * vae.encode(IMAGE * 2 - 1).latent_dist.mean
    seen = torch.cat([latent, torch.zeros_like(latent)], 1)
    made = unet(seen, 999, model.prompt.expand(2, -1, -1)).sample
    abar = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double().square().neg().add(1).prod()
    factors = {"v_prediction": -((1 - abar) ** 0.5), "sample": 1.0, "epsilon": -(((1 - abar) / abar) ** 0.5)}
    x0 = made * float(factors[prediction])
    expected = (vae.decode(x0 / 0.18215).sample.mean(1, keepdim=True).clip(-1, 1) + 1) / 2
    torch.testing.assert_close(model(IMAGE).depth, expected, atol=1e-5, rtol=1e-4)


def test_the_task_is_a_one_hot_pair_by_sines_and_cosines():
    sine, cosine = 0.841471, 0.540302  # of 1
    for image, expected in ((False, [sine, 0, cosine, 1]), (True, [0, sine, 1, cosine])):
        labels = task_labels(1, image=image, device=torch.device("cpu"))
        torch.testing.assert_close(labels[0], torch.tensor(expected))


@pytest.fixture
def saved(checkpoint):
    """A saved model and its model_index.json, which is put back after the test."""
    file = checkpoint / "model_index.json"
    text = file.read_text()
    yield checkpoint, json.loads(text)
    file.write_text(text)


def test_a_folder_without_a_recipe_is_a_model_like_the_papers_or_the_given_one(saved):
    """The first published folders do not even store what they predict, nor the number of steps."""
    folder, index = saved
    with pytest.raises(BaseModelError, match="recipe=NAME"):
        MarigoldDepth.from_pretrained(folder, switches=ZEROS)
    for key in (KEY, "prediction_type", "default_denoising_steps"):
        del index[key]
    (folder / "model_index.json").write_text(json.dumps(index))
    model = MarigoldDepth.from_pretrained(folder)
    assert (model.switches, model.space, model.default_steps) == (Switches(), "affine_depth", None)
    assert MarigoldDepth.from_pretrained(folder, switches=ZEROS).switches == ZEROS


@pytest.mark.parametrize(
    ("where", "change", "key"),
    [
        (KEY, {"version": 2}, "version"),
        (KEY, {"mapping": 1}, "mapping"),
        (KEY, {"noise": "pink"}, "noise"),
        (KEY, {"timesteps": "soon"}, "timesteps"),
        (None, {"prediction_type": "normals"}, "normals"),
        (None, {"scale_invariant": False}, "scale-invariant"),
        (None, None, r"model_index\.json"),
    ],
)
def test_stored_values_without_meaning_are_refused_by_name(saved, where, change, key):
    folder, index = saved
    changed = {**index, where: {**index[where], **change}} if where else {**index, **(change or {})}
    (folder / "model_index.json").write_text(json.dumps(changed) if change else "{")
    with pytest.raises(BaseModelError, match=key):
        MarigoldDepth.from_pretrained(folder)


def test_a_unet_that_does_not_fit_its_recipe_is_refused(base: Backbone):
    """An image generator for example."""
    for switches in (Switches(), Switches(noise="none", reconstruct=True)):
        with pytest.raises(BaseModelError, match="recipe=NAME"):
            MarigoldDepth(base, DepthSettings(switches))
