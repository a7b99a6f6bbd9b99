"""Precisions, kernels and transfers change rounding only, within the tolerances given here."""

import copy
import logging
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.models import make_batch, make_model, make_objective, read
from marigold.evaluation.fits import LeastSquares
from marigold.evaluation.protocol import Benchmark, Protocol
from marigold.evaluation.rows import evaluate
from marigold.model import pipeline
from marigold.model.pipeline import MarigoldDepth
from marigold.model.recipe import Switches
from marigold.model.settings import Sampling
from marigold.training.loop import whole_batch
from marigold.training.settings import make_optimizer
from marigold.types import DepthSample

# Relative errors against float32 of the loss and of the gradient's norm. SD2's size on a CPU, bf16: 5e-5 and 0.022.
TOLERANCES = {torch.bfloat16: (1e-2, 0.1), torch.float16: (2e-3, 2e-2)}
SCALE = 2.0**10  # loss scale: many gradients are below half precision's smallest number
PROTOCOL = Protocol("p", ("affine_depth",), LeastSquares(quantity="depth"), False, Benchmark())


def model_on(device: torch.device) -> MarigoldDepth:
    return make_model(Switches(), tiny=True).to(device)


def gradients(place: tuple[torch.device, bool], dtype: torch.dtype) -> tuple[float, dict[str, Tensor]]:
    """The loss of a micro-batch of cached latents, and its gradient, computed in `dtype` by autocast."""
    device, tiny = place
    base, objective = make_objective(read("performance.tf32=false"), tiny, device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss = objective(base.unet, make_batch(2, True, tiny), 0)
    (loss * SCALE).backward()
    return loss.item(), {name: one.grad for name, one in base.unet.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_autocast_is_near_float32(place, dtype):
    torch.manual_seed(0)
    loss, exact = gradients(place, torch.float32)
    torch.manual_seed(0)
    rounded_loss, rounded = gradients(place, dtype)
    difference = sum(float((rounded[name] - exact[name]).double().square().sum()) for name in exact)
    error = (difference / sum(float(one.double().square().sum()) for one in exact.values())) ** 0.5
    print(f"{place} {dtype}: loss {abs(rounded_loss / loss - 1):.1e}, gradient {error:.1e}")
    assert abs(rounded_loss / loss - 1) < TOLERANCES[dtype][0]
    assert error < TOLERANCES[dtype][1]
    assert rounded_loss != loss


def test_gradients_that_are_not_deterministic_are_listed(place, capsys):
    """Without use_deterministic_algorithms, twice the same step; print a list and check that all values are finite."""
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(gradients(place, torch.bfloat16))
    (loss, first), (again, second) = runs
    moved = [name for name in first if not torch.equal(first[name], second[name])]
    with capsys.disabled():
        print(
            f"\n{place}: loss {'differs' if loss != again else 'equal'}, {len(moved)} of {len(first)} gradients differ"
        )
        print("".join(f"  {name}\n" for name in moved[:20]), end="")
    assert all(bool(one.isfinite().all()) for _, found in runs for one in found.values())


def test_fused_adam_is_adam(device):
    base, _ = make_objective(read(), True, device)
    one, two = base.unet, copy.deepcopy(base.unet)
    config = read("train.weight_decay=0.01").train
    ours = make_optimizer(config, one.parameters())
    plain = torch.optim.Adam(two.parameters(), lr=config.lr, weight_decay=0.01, fused=False, foreach=False)
    assert ours.defaults["fused"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator).to(device)
            b.grad = a.grad.clone()
        ours.step()
        plain.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("cached", [True, False])
def test_batches_that_are_copied_during_computation_give_the_same_losses(device, cached):
    batches = [make_batch(2, cached, tiny=True) for _ in range(8)]
    base, objective = make_objective(read(), True, device)
    pinned = DataLoader(batches, batch_size=None, collate_fn=whole_batch, pin_memory=device.type == "cuda")
    found = [objective(base.unet, batch, g) for g, batch in enumerate(pinned)]
    for g, batch in enumerate(batches):
        there = replace(batch, **{key: part.to(device) for key, part in vars(batch).items() if key != "names"})
        assert torch.equal(objective(base.unet, there, g), found[g])


def test_members_that_overflow_half_precision_are_computed_in_float32(device, caplog):
    """60000 is in float16's range, its products are not; in float32 the normalisation that follows cancels them."""
    half = model_on(device)
    parts = {name: getattr(half.backbone, name) for name in ("unet", "vae", "text_encoder")}
    with torch.no_grad():
        half.backbone.vae.decoder.conv_in.weight.mul_(1e6).clamp_(-60000, 60000)
    for part in parts.values():
        torch.nn.Module.to(part, torch.float16)
    exact = {name: torch.nn.Module.to(copy.deepcopy(part), torch.float32) for name, part in parts.items()}
    asked = {"image": torch.rand(1, 3, 48, 64), "steps": 2, "ensemble_size": 3, "processing_resolution": 0}
    with caplog.at_level(logging.WARNING):
        found = half(**asked, batch_size=3)
    assert "3 of 3" in caplog.text
    wanted = MarigoldDepth(replace(half.backbone, **exact), half.settings)(**asked, batch_size=3)
    torch.testing.assert_close(found.depth, wanted.depth, rtol=0, atol=1e-4)


@torch.no_grad()
def test_members_continue_in_smaller_batches_when_memory_runs_out(device, caplog, monkeypatch):
    model, image = model_on(device), torch.rand(1, 3, 96, 128)
    asked = {"steps": 1, "ensemble_size": 96, "processing_resolution": 0, "batch_size": 96}
    wanted = model.members(image, **asked).depth
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 100e6) / total)
    else:  # as a GPU raises it
        original = pipeline.decode_depth

        def short(vae, latent):
            if len(latent) > 12:
                raise torch.OutOfMemoryError("out of memory")
            return original(vae, latent)

        monkeypatch.setattr(pipeline, "decode_depth", short)
    try:
        with caplog.at_level(logging.WARNING):
            found = model.members(image, **asked).depth
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert {"96", "48"} <= set(re.findall(r"\d+", caplog.text))  # batch sizes before and after
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_rows_of_an_evaluation_do_not_depend_on_the_batch_size(device):
    model = model_on(device)
    torch.manual_seed(0)
    valid = torch.ones(1, 48, 64, dtype=torch.bool)
    samples = [DepthSample(str(k), torch.rand(3, 48, 64), 1 + torch.rand(1, 48, 64), valid) for k in range(3)]

    def rows(batch_size):
        asked = Sampling(2, 5, processing_resolution=0, batch_size=batch_size, exact=True).arguments()
        return list(evaluate(lambda sample: model(sample.image[None], seed=0, **asked), samples, PROTOCOL))

    assert rows(1) == rows(3) == rows(5) == rows(None)
