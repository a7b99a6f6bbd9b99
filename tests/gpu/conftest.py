"""Tests that run on a CPU, most of them in seconds, and on a GPU with `pytest -m gpu`."""

import os
from collections.abc import Iterator

import pytest
import torch

# Read at the first matrix product: without it cuBLAS is not deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
GPU = pytest.mark.gpu


def present(name: str) -> torch.device:
    """The device; a test that was chosen for a GPU fails without one, and is not skipped."""
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("this test was chosen with -m gpu, and torch finds no CUDA device")
    return torch.device(name)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of a test."""
    return present(request.param)


@pytest.fixture
def card() -> torch.device:
    """A GPU, for tests that make no sense on a CPU."""
    return present("cuda")


@pytest.fixture(
    params=[("cpu", True), pytest.param(("cuda", True), marks=GPU), pytest.param(("cuda", False), marks=GPU)],
    ids=["cpu-tiny", "cuda-tiny", "cuda-full"],
)
def place(request: pytest.FixtureRequest) -> tuple[torch.device, bool]:
    """The device, and whether the model is tiny or of Stable Diffusion 2's size."""
    name, tiny = request.param
    return present(name), tiny


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """Restore what `performance.tf32` changes, and empty the GPU's cache."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Deterministic kernels; torch raises where there are none."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
