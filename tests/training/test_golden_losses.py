"""The first losses of the quickstart are what they were: a refactor that moves them says so.

To write the golden file anew after a change that is meant to move the losses:
PYTHONPATH=scripts python tests/training/test_golden_losses.py
"""

import json
from pathlib import Path

import pytest

from marigold.cache_latents import run as cache_latents
from marigold.miniature.rooms.write import RoomsSize
from marigold.train import run
from runs import ROOT, composed, losses, write_data

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 20
# The quickstart's seed and image sizes with fewer scenes, so that it takes seconds.
SIZE = RoomsSize(12, 1, 10, 1, 1, 2, (96, 128), (72, 200), seed=2024)
EXPERIMENTS = ("quickstart", "quickstart,marigold")


def first_losses(folder: Path) -> dict[str, list[float]]:
    """The losses of the quickstart's two recipes over their first steps, with its base and pipeline."""
    data = write_data(folder / "data", SIZE)
    found = {}
    for experiment in EXPERIMENTS:
        place = folder / experiment.replace(",", "-")
        overrides = [f"+exp=[{experiment}]", "device=cpu", f"paths.data={data}", f"run_dir={place}"]
        overrides += [f"model.base={ROOT / 'marigold/miniature/tiny'}", f"train.steps={STEPS}", "train.log_every=1"]
        overrides += ["validation.panel=0", "train.checkpoint_every=1000", "train.validate_every=1000"]
        config = composed("train", *overrides)
        cache_latents(config)
        assert run(config)
        found[experiment] = losses(place)
    return found


@pytest.mark.slow
def test_first_losses_of_the_quickstart(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    for experiment, found in first_losses(tmp_path).items():
        assert found == pytest.approx(golden[experiment], rel=1e-4), experiment


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        GOLDEN.write_text(json.dumps(first_losses(Path(made)), indent=1) + "\n")
