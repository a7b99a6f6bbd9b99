import logging

import pytest
import torch

from marigold.model.latents import OutOfMemoryError, choose_batch_size, in_batches


def doubled_up_to(limit: int, seen: list[int]):
    """A function that runs out of memory above `limit` items."""
    items = torch.arange(10.0)

    def function(part: slice) -> torch.Tensor:
        seen.append(part.stop - part.start)
        if part.stop - part.start > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return items[part] * 2

    return function


@pytest.mark.parametrize("batch_size", [1, 3, 10, 99])
def test_every_item_once_and_in_order(batch_size: int):
    assert in_batches(doubled_up_to(10, []), 10, batch_size).tolist() == [2 * i for i in range(10)]


def test_running_out_of_memory_halves_the_batch(caplog: pytest.LogCaptureFixture):
    seen: list[int] = []
    with caplog.at_level(logging.WARNING):
        assert in_batches(doubled_up_to(3, seen), 10, 8).tolist() == [2 * i for i in range(10)]
    assert seen == [8, 4, 2, 2, 2, 2, 2]
    assert "8 members at once; going on with 4" in caplog.text


def test_not_even_one_is_an_error_for_a_person():
    with pytest.raises(OutOfMemoryError, match="processing_resolution"):
        in_batches(doubled_up_to(0, []), 10, 8)


def test_small_pictures_come_in_larger_batches():
    device = torch.device("cpu")
    sizes = [choose_batch_size(side * side, 128, torch.float32, device) for side in (64, 256, 1024, 8192)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 1
