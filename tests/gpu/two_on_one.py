"""scripts/train.py for processes that share one GPU: gradients through gloo, as NCCL wants a GPU for each."""

import os

import torch

os.environ["LOCAL_RANK"] = "0"  # the GPU's number
torch.distributed.init_process_group("gloo")

from marigold.cli import launch  # noqa: E402

launch("train")
