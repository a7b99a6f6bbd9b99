"""Every published row on one micro-batch, against its formulas written out; what makes no sense is refused by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from marigold.config import ConfigError, to_dataclass
from marigold.data.transforms import PixelBatch, Target, Transform, training_example
from marigold.miniature.random_base import SIZES, build_components, save
from marigold.model.backbone import empty_prompt_embedding
from marigold.model.base import ModelConfig, load_trainable
from marigold.model.diffusion import Diffusion
from marigold.model.recipe import RecipeError, Switches
from marigold.training.losses import gradient_l1, mse, ssi_l1
from marigold.training.objective import Objective, draw
from marigold.training.recipe import Recipe, named_switches
from marigold.types import DepthSample
from runs import CONFIGS, composed

ROWS = sorted(file.stem for file in (CONFIGS / "recipe").glob("*.yaml") if file.stem != "sharpen")
G = 5  # the micro-batch's index


def row(name: str, *overrides: str) -> Recipe:
    return to_dataclass(Recipe, composed("train", f"recipe={name}", *overrides).recipe, "recipe")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base of random weights whose VAE decodes with more contrast."""
    made = build_components(3, *SIZES["tiny"])
    with torch.no_grad():
        made.vae.decoder.conv_out.weight.mul_(8)
    return save(made, tmp_path_factory.mktemp("base"))


def samples() -> list[DepthSample]:
    """Two of 32x40 pixels: a tilted wall with unknown pixels, and a street whose upper rows are sky."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.linspace(0, 1, 40), torch.linspace(0, 1, 32)[:, None]
    wall = (1.5 + 2 * x + y * y + 0.3 * torch.rand(32, 40, generator=generator))[None]
    unknown = torch.zeros(1, 32, 40, dtype=torch.bool)
    unknown[:, 8:16, 24:] = True
    street = (60 - 50 * y + 5 * torch.sin(9 * x))[None].clone()
    street[:, :8] = 655.35
    images = torch.rand(2, 3, 32, 40, generator=generator)
    return [
        DepthSample("wall", images[0], torch.where(unknown, 0, wall), ~unknown),
        DepthSample("street", images[1], street, street < 80),
    ]


class Setup:
    """A recipe's objective over a base, and what the formulas below start from."""

    def __init__(self, recipe: Recipe, base: Path) -> None:
        scheduler = {"rescale_betas_zero_snr": recipe.zero_terminal_snr, "timestep_spacing": recipe.timestep_spacing}
        model = ModelConfig(str(base), [], None, None, False)
        self.recipe = recipe
        self.backbone = load_trainable(model, recipe.switches, scheduler, seed=0)
        self.unet, self.vae = self.backbone.unet, self.backbone.vae
        self.prompt = empty_prompt_embedding(self.backbone.text_encoder, self.backbone.tokenizer, recipe.prompt_tokens)
        self.diffusion = Diffusion.from_config(self.backbone.scheduler_config)
        self.objective = Objective(recipe, self.diffusion, self.prompt, self.vae, seed=7)
        transform, target = Transform(None, False, 0.02), Target(recipe.mapping, recipe.far, recipe.augmentation)
        parts = zip(*(training_example(one, transform, target, flip=False) for one in samples()), strict=True)
        self.batch = PixelBatch(("wall", "street"), *(torch.stack(list(part)) for part in parts))
        self.abar = self.diffusion.alphas_cumprod.double()

    def loss(self) -> torch.Tensor:
        return self.objective(self.unet, self.batch, G)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return 0.18215 * self.vae.encode(image.expand(-1, 3, -1, -1)).latent_dist.mean

    def predict(self, seen: torch.Tensor, timestep: int | torch.Tensor, labels=None) -> torch.Tensor:
        prompt = self.prompt.expand(len(seen), -1, -1)
        return self.unet(seen, timestep, prompt, class_labels=labels).sample

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latent / 0.18215).sample.mean(1, keepdim=True).clip(-1, 1)


def normalised(of_depth) -> torch.Tensor:
    """numpy's quantiles of the mapped valid depths become -1 and 1."""
    maps = []
    for sample in samples():
        mapped = of_depth(sample.depth.double().clamp(min=1e-9))
        low, high = np.quantile(mapped[sample.valid].numpy(), [0.02, 0.98])
        maps.append(((mapped - low) / (high - low) * 2 - 1).clip(-1, 1).float())
    return torch.stack(maps)


def cells(valid: torch.Tensor) -> torch.Tensor:
    """Latent cells all of whose 8 x 8 pixels count."""
    return valid.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4).all(-1)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values[mask.expand_as(values)].mean()


VALID = torch.stack([sample.valid for sample in samples()])
KNOWN = torch.stack([sample.depth > 0 for sample in samples()])  # the sky too
IMAGES = torch.stack([sample.image for sample in samples()]) * 2 - 1


def marigold(setup: Setup) -> torch.Tensor:
    """v = sqrt(abar) noise - sqrt(1 - abar) x0, at the timesteps and noise that the recipe draws."""
    x0 = setup.encode(normalised(lambda z: z))
    timesteps, noise = draw(tuple(x0.shape), setup.recipe, 1000, 7, G)
    abar = setup.abar[timesteps].reshape(-1, 1, 1, 1).float()
    assert (setup.abar[-1] < 1e-9) == setup.recipe.zero_terminal_snr
    noisy = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
    v = setup.predict(torch.cat([setup.encode(IMAGES), noisy], 1), timesteps)
    target = abar.sqrt() * noise - (1 - abar).sqrt() * x0
    return masked_mean((v - target) ** 2, cells(VALID))


def e2e_ft(setup: Setup) -> torch.Tensor:
    """Zeros, t = 999, x0 = -sqrt(1 - abar) v; least squares on depth in metres, L1 over all valid pixels."""
    image = setup.encode(IMAGES)
    x0 = -((1 - setup.abar[999]).sqrt().float()) * setup.predict(torch.cat([image, torch.zeros_like(image)], 1), 999)
    metres = []
    for sample in samples():
        low, high = np.quantile(sample.depth.double()[sample.valid].numpy(), [0.02, 0.98])
        metres.append(sample.depth.double().clip(low, high))
    compared = (setup.decode(x0).double(), torch.stack(metres), VALID, torch.ones(2))
    return ssi_l1(*compared, weighting="unit", pooling="batch")


def lotus(setup: Setup) -> torch.Tensor:
    """x0 of disparity, sky supervised as far, and x0 of the image under the other task."""
    image, depth = setup.encode(IMAGES), setup.encode(normalised(lambda z: 1 / z))
    noise = draw(tuple(depth.shape), setup.recipe, 1000, 7, G)[1]
    abar = setup.abar[999].float()
    one_hot = {"depth": torch.tensor([1.0, 0.0]), "image": torch.tensor([0.0, 1.0])}
    tasks = [("depth", depth, cells(KNOWN)), ("image", image, torch.ones(2, 1, 4, 5, dtype=torch.bool))]
    losses = []
    for task, x0, mask in tasks if setup.recipe.reconstruct else tasks[:1]:
        labels = torch.cat([one_hot[task].sin(), one_hot[task].cos()]).expand(2, -1)
        noisy = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        seen = image if setup.recipe.noise == "none" else torch.cat([image, noisy], 1)
        predicted = setup.predict(seen, 999, labels if setup.recipe.reconstruct else None)
        losses.append(masked_mean((predicted - x0) ** 2, mask))
    return sum(losses)


def genpercept(setup: Setup) -> torch.Tensor:
    """x0 = -v; MSE + 0.5 x L1 after least squares + 2 x L1 of the gradients, all on normalised depth."""
    timesteps = draw((2, 4, 4, 5), setup.recipe, 1000, 7, G)[0]
    decoded = setup.decode(-setup.predict(setup.encode(IMAGES), timesteps))
    compared = (decoded, normalised(lambda z: z), VALID, torch.ones(2))  # the terms themselves: test_losses.py
    fitted = ssi_l1(*compared, weighting="unit", pooling="image")
    return mse(*compared) + 0.5 * fitted + 2 * gradient_l1(*compared)


MAPPED = {"depth": lambda z: z, "sqrt_disparity": lambda z: z**-0.5}


def one_pass(setup: Setup) -> torch.Tensor:
    """The error of the clean latent itself, or of its v at the last timestep, -sqrt(1 - abar) x0."""
    image, x0 = setup.encode(IMAGES), setup.encode(normalised(MAPPED[setup.recipe.mapping]))
    seen = image if setup.recipe.noise == "none" else torch.cat([image, torch.zeros_like(image)], 1)
    if setup.recipe.prediction == "sample":
        return setup.predict(seen, int(setup.recipe.timesteps)) - x0
    return setup.predict(seen, 999) + (1 - setup.abar[999]).sqrt().float() * x0


def latent_error(setup: Setup) -> torch.Tensor:
    return masked_mean(one_pass(setup) ** 2, cells(VALID))


FORMULAS = {"marigold": marigold, "marigold_v1_1": marigold, "marigold_few_step": marigold, "e2e_ft": e2e_ft}
FORMULAS |= {"lotus_d": lotus, "lotus_g": lotus, "genpercept": genpercept}
FORMULAS |= {"depthmaster": latent_error, "one_step": latent_error, "one_step_augmented": latent_error}


@pytest.mark.parametrize("words", [*((name,) for name in ROWS), ("lotus_d", "recipe.reconstruct=0")])
def test_every_row_is_its_formula_and_teaches_the_unet_alone(words, base):
    setup = Setup(row(*words), base)
    loss = setup.loss()
    with torch.no_grad():
        expected = FORMULAS[words[0]](setup).double()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4 if setup.recipe.pixels else 2e-6, atol=1e-6)
    loss.backward()
    assert float(setup.unet.conv_in.weight.grad.norm()) > 0
    assert all(parameter.grad is None for parameter in setup.vae.parameters())


def test_few_steps_are_trained_at_the_last_timestep():
    recipe = row("marigold_few_step")
    timesteps = torch.cat([draw((64, 4, 1, 1), recipe, 1000, 7, g)[0] for g in range(20)])
    assert 0.85 < float((timesteps == 999).double().mean()) < 0.95


def doubled(prediction, target, valid, *, factor=2.0):
    """A user's own term: `recipe.loss.mine`."""
    return factor * ((prediction - target).abs() * valid).sum()


@torch.no_grad()
def test_a_term_of_ones_own_is_one_function_and_one_line(base, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    line = "+recipe.loss.mine={term: test_recipes.doubled, domain: latents, weight: 0.5, options: {factor: 4}}"
    setup = Setup(row("one_step", line), base)
    expected = latent_error(setup) + 0.5 * 4 * (one_pass(setup).abs() * cells(VALID)).sum()
    torch.testing.assert_close(setup.loss(), expected)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["recipe.prediction=epsilon", "recipe.zero_terminal_snr=true"], "zero_terminal_snr"),
        (["recipe.timesteps=terminal", "recipe.terminal_share=0.5"], "terminal_share"),
        (["~recipe.loss.latent"], "loss"),
        (["recipe.loss.latent.weight=-1"], "weight"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(overrides, key):
    with pytest.raises(RecipeError, match=key):
        row("marigold", *overrides)


def test_a_term_that_does_not_exist_is_refused_before_the_first_step(base):
    with pytest.raises(ConfigError, match=r"recipe\.loss\.latent\.term"):
        Setup(row("one_step", "recipe.loss.latent.term=marigold.training.losses.nothing"), base)


def test_a_base_that_predicts_noise_has_nothing_to_predict_without_noise(tmp_path):
    """`prediction: base` is the base's; an epsilon head would learn to return the zeros that it is shown."""
    made = build_components(0, *SIZES["tiny"])
    folder = save(replace(made, scheduler_config={**made.scheduler_config, "prediction_type": "epsilon"}), tmp_path)
    with pytest.raises(RecipeError, match="recipe one_step: prediction=epsilon"):
        Setup(row("one_step"), folder)
    Setup(row("one_step", "recipe.prediction=sample"), folder)
    Setup(row("e2e_ft"), folder)  # its pixels can be computed from a prediction of noise


def test_a_recipe_holds_its_whole_row():
    """`+exp=quickstart recipe=NAME` changes no switch of the method."""
    for name in ("e2e_ft", "lotus_d"):
        alone = OmegaConf.load(CONFIGS / f"recipe/{name}.yaml")
        inside = composed("train", "+exp=quickstart", f"recipe={name}")
        assert alone.recipe == inside.recipe
        for key in ("optimizer", "weight_decay", "max_grad_norm", "schedule"):
            assert alone.train[key] == inside.train[key], (name, key)


def test_switches_that_other_authors_folders_do_not_store_are_named():
    expected = {
        "e2e_ft": Switches("depth", "zeros", "terminal", "base", 2, False),
        "lotus_d": Switches("disparity", "none", "terminal", "sample", 2, True),
        "lotus_g": Switches("disparity", "gaussian", "terminal", "sample", 2, True),
    }
    assert {name: named_switches(name) for name in expected} == expected
    with pytest.raises(ConfigError, match="recipe"):  # it has no switches of its own
        named_switches("sharpen")
