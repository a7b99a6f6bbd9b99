"""`benchmark.py memory` computes the bytes that a run needs."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from benchmarks import memory
from benchmarks.models import make_batch, make_objective, read

FROM = pytest.mark.parametrize("overrides", [("cache.enabled=true",), ("recipe=e2e_ft",)], ids=["latents", "pixels"])
CHECKPOINTING = pytest.mark.parametrize("checkpointing", ["false", "true"])


@FROM
@CHECKPOINTING
def test_fake_tensors_have_the_bytes_of_real_ones(monkeypatch, overrides, checkpointing):
    settings = read(*overrides, f"performance.gradient_checkpointing={checkpointing}")
    computed = memory.micro_batch_bytes(settings, "bf16", 2, tiny=True)
    monkeypatch.setattr(memory, "FakeTensorMode", nullcontext)
    assert computed == memory.micro_batch_bytes(settings, "bf16", 2, tiny=True)


def test_autograd_saved_what_is_alive_after_the_forward_pass():
    base, objective = make_objective(memory.numberless(read("cache.enabled=true")), True, torch.device("cpu"))
    parameters = [*base.unet.parameters(), *base.vae.parameters()]
    known = {parameter.untyped_storage()._cdata for parameter in parameters}
    saved = {}

    def pack(tensor):
        if tensor.untyped_storage()._cdata not in known:
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    batch = make_batch(2, True, tiny=True)
    with saved_tensors_hooks(pack, lambda tensor: tensor), memory.Bytes(*parameters) as alive:
        loss = objective(base.unet, batch, 0)
    assert loss.requires_grad
    assert sum(saved.values()) == pytest.approx(alive.now, rel=0.02)


@pytest.mark.slow
def test_the_documented_table_is_what_the_command_prints(capsys):
    memory.main([])
    table = capsys.readouterr().out
    assert table in (Path(__file__).parents[2] / "docs/memory.md").read_text()


@pytest.mark.gpu
@FROM
@CHECKPOINTING
def test_the_full_size_needs_the_computed_memory(card, overrides, checkpointing):
    """By the allocator's own count, which includes the workspaces of cuDNN but not CUDA's own half a gigabyte."""
    settings = read(*overrides, f"performance.gradient_checkpointing={checkpointing}")
    base, objective = make_objective(settings, False, card)
    for parameter in base.unet.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = make_batch(2, settings.cache.enabled, tiny=False)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", torch.bfloat16):
        loss = objective(base.unet, batch, 0)
    loss.backward()
    measured = torch.cuda.max_memory_allocated() - before
    computed = memory.micro_batch_bytes(settings, "bf16", 2).peak
    print(f"{overrides}, {checkpointing}: measured {measured / 1e9:.2f} GB, computed {computed / 1e9:.2f} GB")
    assert 0.9 * computed < measured < computed + memory.ASIDE - 0.5e9
