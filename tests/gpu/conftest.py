"""Tests whose bodies run on a CPU, in seconds and always, and on a GPU with `pytest -m gpu`."""

import os
from collections.abc import Iterator

import pytest
import torch

# Read when the first product is computed: without it none on a GPU is deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
GPU = pytest.mark.gpu


def present(name: str) -> torch.device:
    """The device; without a GPU a test that was chosen for one fails, and is not passed over."""
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("this test was chosen with -m gpu, and torch finds no CUDA device")
    return torch.device(name)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a test computes."""
    return present(request.param)


@pytest.fixture
def card() -> torch.device:
    """A GPU, of tests that have nothing to do on a CPU."""
    return present("cuda")


@pytest.fixture(
    params=[("cpu", True), pytest.param(("cuda", True), marks=GPU), pytest.param(("cuda", False), marks=GPU)],
    ids=["cpu-tiny", "cuda-tiny", "cuda-full"],
)
def place(request: pytest.FixtureRequest) -> tuple[torch.device, bool]:
    """Where a test computes, and whether its model is tiny or of Stable Diffusion 2's size."""
    name, tiny = request.param
    return present(name), tiny


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """What `performance.tf32` changes is as it was, and the GPU empty."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Kernels without atomic additions, or an error."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
