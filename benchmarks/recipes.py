"""Images per second and peak memory of one training step of every recipe, beside `marigold`, on random images.

Each recipe is measured in a process of its own, whose peak is its own; the rounds of all recipes alternate, so that
what else the machine does meets all of them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from benchmarks.timing import peak_memory
from marigold.config import installed, to_dataclass
from marigold.data.latent_cache import LatentBatch
from marigold.data.transforms import PixelBatch
from marigold.miniature.random_base import SIZES, build_components, build_sd2_sized
from marigold.model.backbone import add_task_switch, empty_prompt_embedding, narrow_conv_in
from marigold.model.diffusion import Diffusion
from marigold.training.objective import Objective, encode_batch
from marigold.training.recipe import Recipe

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/benchmark.py"
RECIPES = ("marigold", "one_step", "depthmaster", "lotus_d", "lotus_g", "e2e_ft", "genpercept")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py recipes", description=__doc__)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--model", choices=[*SIZES, "sd2"], default="tiny")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="timed in every round, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cached", action="store_true", help="from cached latents, without the VAE's encoder")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.only:
        print(json.dumps(measure(options.only, options)))
        return
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in options.recipes}
    for _ in range(options.rounds):
        for name in options.recipes:
            command = [sys.executable, str(SCRIPT), "recipes", *argv, "--only", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows[name].append(json.loads(done.stdout.splitlines()[-1]))
    speed = {name: statistics.median(row["images_per_second"] for row in found) for name, found in rows.items()}
    memory = {name: statistics.median(row["peak_mib"] for row in found) for name, found in rows.items()}
    first = options.recipes[0]
    height, width = options.size
    print(f"{options.model}, {height}x{width}, batch {options.batch}, median of {options.rounds} rounds")
    for name in options.recipes:
        ratio = speed[name] / speed[first]
        print(f"{name:12s} {speed[name]:8.2f} images/s {ratio:6.2f} x {first}, peak {memory[name]:8.0f} MiB")


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """One recipe: forward, backward and optimiser step."""
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with initialize_config_dir(str(installed("configs")), version_base="1.3"):
        recipe = to_dataclass(Recipe, compose("train", [f"recipe={name}"]).recipe, "recipe")
    channels = 8  # narrowed below where the recipe asks for it
    base = (
        build_sd2_sized(in_channels=channels)
        if options.model == "sd2"
        else build_components(0, *SIZES[options.model], in_channels=channels)
    )
    for module in (base.unet, base.vae):
        module.to(device)  # type: ignore[arg-type]
    unet, vae = base.unet.train(), base.vae.requires_grad_(False)
    if recipe.switches.in_channels == 4:
        narrow_conv_in(unet)
    if recipe.switches.reconstruct:
        add_task_switch(unet, 0)
    config = {**base.scheduler_config, "rescale_betas_zero_snr": recipe.zero_terminal_snr}
    if recipe.prediction != "base":
        config["prediction_type"] = recipe.prediction
    prompt = empty_prompt_embedding(base.text_encoder, base.tokenizer, recipe.prompt_tokens).to(device)
    objective = Objective(recipe, Diffusion.from_config(config), prompt, vae, seed=0)
    generator, (height, width) = torch.Generator().manual_seed(0), options.size
    image, depth = (torch.rand(options.batch, n, height, width, generator=generator) * 2 - 1 for n in (3, 1))
    pixels = PixelBatch(
        ("",) * options.batch, image, depth, torch.ones_like(depth, dtype=torch.bool), torch.ones(options.batch)
    )
    batch: PixelBatch | LatentBatch = encode_batch(vae, pixels, recipe.parts) if options.cached else pixels
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5)

    def step(g: int) -> None:
        objective(unet, batch, g).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    memory = peak_memory(lambda: step(0))
    started = time.perf_counter()
    for g in range(options.steps):
        step(g)
    seconds = time.perf_counter() - started
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    return {"images_per_second": options.steps * options.batch / seconds, "peak_mib": memory}
