"""The one table of precisions: what users type -> what torch computes in."""

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Of inference and evaluation: the weights' type."""

AUTOCAST = {"no": None, "bf16": PRECISIONS["bfloat16"], "fp16": PRECISIONS["float16"]}
"""Of training, in accelerate's words: what matrix products are computed in; `no` is the weights' own type."""
