"""Ensembling gives a sound result or the documented error, whatever the members are."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marigold.depth.ensemble import ensemble_depth

KINDS = ("noise", "ramp", "constant", "inverted", "huge", "tiny", "spike", "nan", "infinity")
QUICK = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=2000)


@st.composite
def ensembles(draw):
    """Members of mixed kinds, sizes from one pixel on, in three precisions."""
    members, height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (1, height, width)
    ramp = torch.linspace(0, 1, height * width, dtype=torch.float64).view(shape)
    maps = []
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=members, max_size=members)):
        noise = torch.rand(shape, generator=generator, dtype=torch.float64)
        spike = torch.zeros(shape, dtype=torch.float64)
        spike.view(-1)[0] = 1
        made = {
            "noise": noise,
            "ramp": ramp + 0.01 * noise,
            "constant": torch.full(shape, draw(st.sampled_from([0.0, 0.5, -3.0])), dtype=torch.float64),
            "inverted": 1 - ramp,
            "huge": 1e12 * noise,
            "tiny": 1e-20 * noise,
            "spike": spike,
            "nan": noise.masked_fill(spike > 0, torch.nan),
            "infinity": noise.masked_fill(spike > 0, torch.inf),
        }[kind]
        maps.append(made)
    dtype = draw(st.sampled_from([torch.float16, torch.float32, torch.float64]))
    options = {
        "reduction": draw(st.sampled_from(["median", "mean"])),
        "alignment": draw(st.sampled_from(["affine", "scale", "none"])),
    }
    return torch.stack(maps).to(dtype), options


def check(made):
    members, options = made
    before = members.clone()
    if not members.isfinite().all():
        with pytest.raises(ValueError, match="ensemble member"):
            ensemble_depth(members, **options)
        return
    try:
        result = ensemble_depth(members, **options)
    except ValueError:
        # Documented: a scale alone cannot bring a consensus below 0 into [0, 1].
        if options["alignment"] == "scale" and members.min() < 0:
            return
        raise
    assert torch.equal(members, before)  # the input is left alone
    for part in result:
        assert part.isfinite().all()
    assert result.depth.shape == result.uncertainty.shape == (1, *members.shape[1:])
    assert (result.uncertainty >= 0).all()
    if options["alignment"] != "none":
        assert result.depth.max() <= 1 + 1e-5
    if options["alignment"] == "affine":
        assert result.depth.min() >= -1e-5
    again = ensemble_depth(members, **options)
    assert torch.equal(again.depth, result.depth)


@QUICK
@given(ensembles())
def test_any_members(made):
    check(made)


@pytest.mark.slow
@LONG
@given(ensembles())
def test_any_members_two_thousand_times(made):
    check(made)
