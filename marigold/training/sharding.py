"""A U-Net whose weights, gradients and moments are spread over the processes: for bases that don't fit on one GPU.

This is torch's fully_shard (FSDP2), what accelerate's FSDP plugin calls. The plugin quietly does nothing on CPUs,
where the tests run, so it is called here; the processes and their devices are accelerate's.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from marigold.training.settings import TrainingError

# Each is gathered when it computes and let go afterwards; between them lie small layers only.
_BLOCKS = (BasicTransformerBlock, ResnetBlock2D)


def shard(unet: UNet2DConditionModel, accelerator: Accelerator, optimizer: str) -> UNet2DConditionModel:
    """Return a copy of `unet` spread over the processes; `unet` itself waits, whole, in the CPU's memory.

    Raises TrainingError for what does not go together with it.
    """
    if optimizer != "adam":
        raise TrainingError(f"train.shard=true works with train.optimizer=adam, not {optimizer}")
    if accelerator.mixed_precision == "fp16":
        raise TrainingError("train.shard=true works with precision=bf16 or no, not with fp16 and its loss scaling")
    if unet._compiled_call_impl is not None:
        raise TrainingError("train.shard=true does not go together with performance.compile=true")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    spread = copy.deepcopy(unet.cpu())
    for block in [module for module in spread.modules() if isinstance(module, _BLOCKS)]:
        fully_shard(block, mesh=mesh)
    fully_shard(spread, mesh=mesh)
    return spread


@contextmanager
def published(trained: torch.nn.Module, unet: UNet2DConditionModel, device: torch.device) -> Iterator[None]:
    """Meanwhile `unet` is on `device` with the weights of `trained`; entered by all processes together.

    Does nothing if `trained` is not sharded: it is `unet` then, or a wrapper of it.
    """
    if not isinstance(trained, FSDPModule):
        yield
        return
    unet.to(device)  # type: ignore[arg-type]
    with torch.no_grad():
        for target, source in zip(unet.parameters(), trained.parameters(), strict=True):
            target.copy_(whole(source.detach()))
    yield
    unet.cpu()


@contextmanager
def no_sync(trained: torch.nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Meanwhile gradients add up on their process, whether `trained` is sharded or not."""
    if not isinstance(trained, FSDPModule):
        with accelerator.no_sync(trained):
            yield
        return
    trained.set_requires_gradient_sync(False)
    yield
    trained.set_requires_gradient_sync(True)


def whole(tree: Any) -> Any:
    """The same nest of dicts and lists with sharded tensors put together; called by all processes together."""
    if isinstance(tree, DTensor):
        # What was moved off the mesh's device cannot be sent from where it is.
        moved = cast(DTensor, tree.to(tree.device_mesh.device_type))
        return moved.full_tensor()
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value) for value in tree]
    return tree


def spread_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, spread over the processes if `parameter` is."""
    if not isinstance(parameter, DTensor):
        return value
    mesh = parameter.device_mesh
    # Every process has the whole tensor: nothing is sent.
    return distribute_tensor(value.to(parameter.device), mesh, parameter.placements, src_data_rank=None)


def spread_moments(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """An optimiser's state with its moments spread as its parameters are."""

    def spread(value: Any, parameter: Tensor) -> Any:
        is_moment = isinstance(value, Tensor) and value.shape == parameter.shape  # not a count of steps
        return spread_like(value, parameter) if is_moment else value

    moments = {
        index: {key: spread(value, parameters[index]) for key, value in entries.items()}
        for index, entries in state["state"].items()
    }
    return {**state, "state": moments}
