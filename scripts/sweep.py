"""Draw the paper's inference ablations: AbsRel over the ensemble size, or over the denoising steps.

python scripts/sweep.py curve=ensemble dataset=rooms checkpoint=DIR
python scripts/sweep.py -m curve=ensemble,steps dataset=rooms checkpoint=DIR
torchrun --nproc_per_node 2 scripts/sweep.py ... device=cpu

The training ablations are experiments: see configs/exp/ablation_*.yaml.
"""

from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from compose import output_folder, set_up
from marigold import provenance
from marigold.config import errors_for_people, to_dataclass
from marigold.data.base import DepthDataset
from marigold.data.files import lock_folder
from marigold.evaluate import reader_of
from marigold.evaluation.curves import AXES, Point, SweepSettings, judge_points, over_sizes, over_steps, write_curve
from marigold.evaluation.evaluate import merge_rows, summarise
from marigold.evaluation.predictors import run_name
from marigold.evaluation.protocol import Protocol
from marigold.evaluation.session import Processes
from marigold.evaluation.settings import PRECISIONS, Sampler
from marigold.identity import fingerprint, identity
from marigold.model.pipeline import MarigoldDepth
from multirun import launch_jobs, one_job


def run(config: DictConfig) -> None:
    """Evaluate every point and write the three files; raises ValueError or OSError with one line for a person."""
    OmegaConf.resolve(config)
    plain = OmegaConf.masked_copy(config, [field.name for field in fields(SweepSettings)])
    settings = to_dataclass(SweepSettings, plain)
    chosen = to_dataclass(Sampler, config.sampler, "sampler")
    protocol, samples, processes, device = set_up(config)
    model = MarigoldDepth.from_pretrained(settings.checkpoint, torch_dtype=PRECISIONS[settings.precision]).to(device)
    protocol.require_space(model.space)
    reader: Any = OmegaConf.to_container(reader_of(config.dataset, protocol.name), resolve=True)
    facts = {
        "settings": asdict(settings),
        "sampler": chosen.arguments(model.default_steps),
        "reader": identity({"dataset": {"reader": reader}}, {}),
        "protocol": protocol.describe(),
        "split": asdict(samples.split),
        "checkpoint_files": provenance.files_identity(Path(settings.checkpoint)),
        "commit": provenance.commit(),
    }
    digest = fingerprint({**facts, "settings": {**asdict(settings), "output": None}})
    name = f"{samples.name}-{protocol.name}-{settings.curve}-{digest[:8]}"
    folder = output_folder(settings.output, Path(config.paths.runs) / "sweep", name)
    title = f"{run_name(Path(settings.checkpoint))} on {samples.name}, {len(samples)} images, protocol {protocol.name}"
    with lock_folder(folder) if processes.rank == 0 else nullcontext():
        points = evaluate_points(model, samples, protocol, processes, settings, chosen)
        if processes.rank > 0:
            return
        axis = AXES[settings.curve]
        write_curve(folder, points, axis, title, facts)
    print(f"\n{'line':12s}{axis:>18s}{'AbsRel %':>10s}")
    for point in points:
        print(f"{point.line:12s}{point.value:18d}{point.percent:10.2f}")
    print(f"written to {folder}: points.csv, curve.png, sweep.json")


def evaluate_points(
    model: MarigoldDepth,
    samples: DepthDataset,
    protocol: Protocol,
    processes: Processes,
    settings: SweepSettings,
    chosen: Sampler,
) -> list[Point]:
    """Every point of the curve over all images, the same on every process."""
    predict = (over_sizes if settings.curve == "ensemble" else over_steps)(model, settings, chosen)
    rank, world = processes.rank, processes.world
    mine = len(range(rank, len(samples), world))
    with tqdm(total=mine, desc=f"{settings.curve} curve", unit="image", disable=rank > 0) as bar:
        rows = judge_points(
            predict, samples, protocol, metrics=settings.metrics, rank=rank, world=world, on_image=bar.update
        )
    parts = processes.gather([rows])
    return [
        Point(*key, summarise(merge_rows([part.get(key, []) for part in parts], len(samples)))) for key in parts[0]
    ]


@hydra.main(version_base="1.3", config_path="../configs", config_name="sweep")
def main(config: DictConfig) -> None:
    with one_job(), errors_for_people():
        run(config)


if __name__ == "__main__":
    launch_jobs(main)
