"""The mixture: a function of (seed, g), every sample once per epoch, the same stream for any number of processes."""

import pickle
from collections import Counter
from dataclasses import replace

import pytest

from marigold.data.mixture import BLOCK, Mixture, global_indices


def mixture(sizes=(50, 20), weights=(0.9, 0.1), micro_batch=4, flip=0.5, seed=1, variants=0):
    return Mixture(sizes, weights, micro_batch, flip, seed, variants)


def test_any_order_of_asking_gives_the_same_micro_batches():
    one, two = mixture(), mixture()
    forward = [one[g] for g in range(200)]
    assert [two[g] for g in reversed(range(200))] == forward[::-1]
    assert [pickle.loads(pickle.dumps(one))[g] for g in (7, 150)] == [forward[7], forward[150]]


def test_every_epoch_holds_each_sample_at_most_once_and_a_new_order():
    epochs = 3
    per_epoch = 50 // 4
    one = mixture(weights=(1.0, 0.0))
    seen = [one[g].indices for g in range(epochs * per_epoch)]
    orders = []
    for epoch in range(epochs):
        indices = [index for batch in seen[epoch * per_epoch : (epoch + 1) * per_epoch] for index in batch]
        assert len(indices) == len(set(indices)) == 48
        assert set(indices) <= set(range(50))
        orders.append(indices)
    assert orders[0] != orders[1] != orders[2]


def test_weights_are_kept_and_a_block_boundary_changes_nothing():
    one = mixture(sizes=(1000, 1000), micro_batch=1)
    counts = Counter(one[g].dataset for g in range(5000))
    # Binomial: 500 expected, standard deviation 21.
    assert abs(counts[1] - 500) < 5 * 21
    boundary = (one[g] for g in range(BLOCK - 1500, BLOCK + 1500))
    around = [micro.indices[0] for micro in boundary if micro.dataset == 0]
    # Whole epochs follow each other across the boundary: no sample is lost or comes twice.
    assert any(len({*around[at:][:1000]}) == len({*around[at + 1000 :][:1000]}) == 1000 for at in range(1000))


def test_flips_have_their_probability():
    one = mixture(flip=0.25)
    # Binomial: 1000 of 4000 expected, standard deviation 27.
    assert abs(sum(sum(one[g].flips) for g in range(1000)) - 1000) < 5 * 27


def test_variants_are_uniform_and_disturb_no_other_draw():
    plain, varied, other = mixture(), mixture(variants=3), mixture(variants=3, seed=2)
    every = [varied[g] for g in range(1000)]
    assert [replace(micro, variants=(0, 0, 0, 0)) for micro in every] == [plain[g] for g in range(1000)]
    counts = Counter(variant for micro in every for variant in micro.variants)
    assert set(counts) == {0, 1, 2}
    # Binomial: 1333 of 4000 expected, standard deviation 30.
    assert max(abs(count - 4000 / 3) for count in counts.values()) < 5 * 30
    assert other[0].variants != every[0].variants


def test_processes_share_one_stream():
    alone = list(global_indices(3, 5, 4, 0, 1))
    together = [list(global_indices(3, 5, 2, rank, 2)) for rank in range(2)]
    assert sorted(together[0] + together[1]) == alone
    # The first optimiser step of both covers the same micro-batches.
    assert set(together[0][:2] + together[1][:2]) == set(alone[:4])


@pytest.mark.parametrize(
    "settings",
    [{"weights": (0.0, 0.0)}, {"weights": (-1.0, 2.0)}, {"weights": (1.0,)}, {"micro_batch": 21}, {"flip": 1.5}],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ValueError, match="mixture"):
        mixture(**settings)


def test_a_set_of_weight_zero_may_be_small():
    assert mixture(sizes=(50, 1), weights=(1.0, 0.0))[0].dataset == 0
