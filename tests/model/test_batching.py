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


@pytest.mark.parametrize(
    ("batch_size", "limit", "expected"),
    [(1, 10, [1] * 10), (3, 10, [3, 3, 3, 1]), (99, 10, [10]), (8, 3, [8, 4, 2, 2, 2, 2, 2])],
)
def test_every_item_once_and_in_order_and_running_out_of_memory_halves_the_batch(batch_size, limit, expected, caplog):
    seen: list[int] = []
    assert in_batches(doubled_up_to(limit, seen), 10, batch_size).tolist() == [2 * i for i in range(10)]
    assert seen == expected
    assert ("4" in caplog.text) == (limit < batch_size == 8)


def test_not_even_one_is_an_error_for_a_person():
    with pytest.raises(OutOfMemoryError, match="processing_resolution"):
        in_batches(doubled_up_to(0, []), 10, 8)


def test_small_images_come_in_larger_batches():
    device = torch.device("cpu")
    sizes = [choose_batch_size(side * side, 128, torch.float32, device) for side in (64, 256, 1024, 8192)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 1
