"""scripts/train.py for processes that share one GPU: they talk through gloo, as NCCL wants a GPU for each."""

import os
from typing import Any

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from marigold.cli import launch
from marigold.training import settings


def shared(*, kwargs_handlers: list[Any], **more: Any) -> Accelerator:
    return Accelerator(kwargs_handlers=[*kwargs_handlers, InitProcessGroupKwargs(backend="gloo")], **more)


os.environ["LOCAL_RANK"] = "0"  # the GPU's number
settings.Accelerator = shared
launch("train")
