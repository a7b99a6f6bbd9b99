"""Draw the paper's inference ablations: AbsRel over the ensemble size, or over the denoising steps.

python scripts/sweep.py curve=ensemble dataset=rooms checkpoint=DIR
python scripts/sweep.py curve=steps dataset=rooms checkpoint=DIR
torchrun --nproc_per_node 2 scripts/sweep.py ... device=cpu

The training ablations are experiments: see configs/exp/ablation_*.yaml.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import hydra
from accelerate.utils import gather_object
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from eval import DTYPES, Sampler, set_up
from marigold.config import ConfigError, errors_for_people, launch, to_dataclass
from marigold.evaluation import provenance
from marigold.evaluation.curves import Key, Point, judge_points, write_points
from marigold.evaluation.evaluate import merge_rows, summarise
from marigold.model.pipeline import MarigoldDepth
from marigold.types import DepthSample, Prediction
from marigold.visualization import curves

AXES = {"ensemble": "ensemble size", "steps": "denoising steps"}


@dataclass(frozen=True)
class SweepConfig:
    """The plain keys of configs/sweep.yaml."""

    curve: str
    checkpoint: str
    ensemble_sizes: list[int]
    steps: list[int]
    spacings: list[str]
    precision: str
    seed: int
    limit: int | None
    metrics: list[str]
    output: str
    device: str | None
    threads: int

    def __post_init__(self) -> None:
        for key, allowed in (("curve", tuple(AXES)), ("precision", tuple(DTYPES))):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"{key}={getattr(self, key)}: expected one of {', '.join(allowed)}")
        if not self.metrics or self.metrics[0] != "abs_rel":
            raise ConfigError(f"metrics={self.metrics}: abs_rel, which is drawn, has to be the first")
        for key in ("ensemble_sizes", "steps"):
            values = getattr(self, key)
            if not values or min(values) < 1 or len(set(values)) < len(values):
                raise ConfigError(f"{key}={values}: expected different numbers from 1 on")


def predictor(model: MarigoldDepth, settings: SweepConfig, chosen: Sampler) -> Callable:
    """sample -> the prediction at every point of the curve."""
    common = {
        "processing_resolution": chosen.processing_resolution,
        "seed": settings.seed,
        "batch_size": chosen.batch_size,
    }
    combine = {"method": chosen.ensemble_method, "reduction": chosen.reduction}

    def over_sizes(sample: DepthSample) -> dict[Key, Prediction]:
        members = model.members(
            sample.image[None], steps=chosen.steps, ensemble_size=max(settings.ensemble_sizes), **common
        )
        return {
            (chosen.ensemble_method, size): model.combine(members.first(size), **combine)
            for size in settings.ensemble_sizes
        }

    spaced = {spacing: model.with_spacing(spacing) for spacing in settings.spacings}

    def over_steps(sample: DepthSample) -> dict[Key, Prediction]:
        found = {}
        for spacing, sampled in spaced.items():
            for steps in settings.steps:
                members = sampled.members(
                    sample.image[None], steps=steps, ensemble_size=chosen.ensemble_size, **common
                )
                found[spacing, steps] = sampled.combine(members, **combine)
        return found

    return over_sizes if settings.curve == "ensemble" else over_steps


def run(config: DictConfig) -> None:
    """Judge every point and write the three files; raises ValueError or OSError with one line for a person."""
    OmegaConf.resolve(config)
    settings = to_dataclass(SweepConfig, OmegaConf.masked_copy(config, [field.name for field in fields(SweepConfig)]))
    chosen = to_dataclass(Sampler, config.sampler, "sampler")
    protocol, dataset, state, device = set_up(config)
    model = MarigoldDepth.from_pretrained(settings.checkpoint, torch_dtype=DTYPES[settings.precision]).to(device)
    protocol.require_space(model.space)
    total = len(range(state.process_index, len(dataset), state.num_processes))
    with tqdm(total=total, desc=f"{settings.curve} curve", unit="image", disable=not state.is_main_process) as bar:
        rows = judge_points(
            predictor(model, settings, chosen),
            dataset,
            protocol,
            metrics=settings.metrics,
            rank=state.process_index,
            world=state.num_processes,
            on_image=bar.update,
        )
    parts = gather_object([rows])
    if not state.is_main_process:
        return
    keys = list(parts[0])
    points = [Point(*key, summarise(merge_rows([part.get(key, []) for part in parts], len(dataset)))) for key in keys]
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    axis = AXES[settings.curve]
    write_points(folder / "points.csv", points, axis.replace(" ", "_"))
    lines: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        lines.setdefault(point.line, []).append((point.value, 100 * point.summary.metrics["abs_rel"].mean))
    title = f"{Path(settings.checkpoint).name} on {dataset.name}, {len(dataset)} images, protocol {protocol.name}"
    curves(folder / "curve.png", lines, axis, "AbsRel %", title)
    facts = {
        "settings": asdict(settings),
        "sampler": asdict(chosen),
        "protocol": protocol.describe(),
        "split": asdict(dataset.split),
        "checkpoint_files": provenance.files_identity(Path(settings.checkpoint)),
        "commit": provenance.commit(),
    }
    (folder / "sweep.json").write_text(json.dumps(facts, indent=1))
    print(f"\n{'line':12s}{axis:>18s}{'AbsRel %':>10s}")
    for point in points:
        print(f"{point.line:12s}{point.value:18d}{100 * point.summary.metrics['abs_rel'].mean:10.2f}")
    print(f"written to {folder}: points.csv, curve.png, sweep.json")


@hydra.main(version_base="1.3", config_path="../configs", config_name="sweep")
def main(config: DictConfig) -> None:
    with errors_for_people():
        run(config)


if __name__ == "__main__":
    launch(main)
