"""scripts/train.py for processes that share one GPU: they use gloo, as NCCL needs a GPU per process."""

import os
from typing import Any

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from marigold.cli import launch
from marigold.training import settings


def shared(*, kwargs_handlers: list[Any], **more: Any) -> Accelerator:
    return Accelerator(kwargs_handlers=[*kwargs_handlers, InitProcessGroupKwargs(backend="gloo")], **more)


os.environ["LOCAL_RANK"] = "0"  # the index of the GPU
settings.Accelerator = shared
launch("train")
