"""Evaluate a checkpoint, a function or stored predictions on a data set: see configs/eval.yaml for every key.

python scripts/eval.py dataset=nyu checkpoint=DIR
python scripts/eval.py -m dataset=nyu,kitti,eth3d,scannet,diode checkpoint=DIR
accelerate launch --num_processes 2 scripts/eval.py dataset=nyu checkpoint=DIR
"""

import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from compose import output_folder, set_up
from marigold.config import errors_for_people, to_dataclass
from marigold.data.files import lock_folder
from marigold.evaluate import reader_of
from marigold.evaluation import predictors
from marigold.evaluation.predictors import Predictor
from marigold.evaluation.report import metrics_table, single_table
from marigold.evaluation.run import Evaluation
from marigold.evaluation.settings import PRECISIONS, EvalSettings, Panel, Sampler
from multirun import launch_jobs, one_job


def make_predictor(settings: EvalSettings, sampler: Sampler, device: torch.device) -> Predictor:
    """What the configuration names; raises EvaluationError for settings that it has no use for."""
    if settings.predictions:
        metric = settings.space == "metric_depth"
        settings.refuse_unused(
            f"{settings.space} predictions", ("precision", *(() if metric else ("prediction_unit",)))
        )
        return predictors.of_files(Path(settings.predictions), settings.space, settings.prediction_unit)
    named = settings.checkpoint or settings.predictor or ""
    if settings.predictor and ":" in named and not Path(named).exists():
        settings.refuse_unused("a predictor=MODULE:FUNCTION", ("precision", "prediction_unit"))
        sys.path.insert(0, "")  # modules are looked for in the working folder too
        return predictors.of_function(named, settings.space, device)
    settings.refuse_unused("a checkpoint", ("space", "prediction_unit"))
    from marigold.model.pipeline import MarigoldDepth  # diffusers takes seconds to import; stored predictions don't

    model = MarigoldDepth.from_pretrained(named, torch_dtype=PRECISIONS[settings.precision]).to(device)
    return predictors.of_model(model, named, sampler, settings.precision)


def folder_of(evaluation: Evaluation, runs: str) -> Path:
    """The output folder; its default name has everything that the results depend on."""
    settings, seeds = evaluation.settings, evaluation.settings.all_seeds
    name = f"{evaluation.samples.name}-{evaluation.protocol.name}-{evaluation.header['fingerprint'][:8]}"
    if seeds != range(1):
        name += f"-seeds{seeds[0]}to{seeds[-1]}"
    return output_folder(settings.output, Path(runs) / "eval", name)


def run(config: DictConfig) -> None:
    """Evaluate as configured; raises ValueError or OSError with one line for a person."""
    OmegaConf.resolve(config)
    plain = OmegaConf.masked_copy(config, [field.name for field in fields(EvalSettings)])
    settings = to_dataclass(EvalSettings, plain)
    sampler = to_dataclass(Sampler, config.sampler, "sampler")
    panel = to_dataclass(Panel, config.panel, "panel")
    protocol, samples, processes, device = set_up(config)
    reader: Any = OmegaConf.to_container(reader_of(config.dataset, protocol.name), resolve=True)
    evaluation = Evaluation(make_predictor(settings, sampler, device), samples, reader, protocol, settings, device)
    folder = folder_of(evaluation, config.paths.runs)
    # The other processes write nothing before they have met the first one in there.
    with lock_folder(folder) if processes.rank == 0 else nullcontext():
        content = evaluation.run(folder, panel, processes)
    if content is None:
        return
    picture = ", panel.png" if (folder / "panel.png").is_file() else ""
    print(f"\n{metrics_table(content)}\n\n{single_table(content)}\n")
    print(f"written to {folder}: results.json, per_image.csv{picture}")
    for failure in content["failures"]:
        print(f"FAILED (seed {failure['seed']}): {failure['reason']}", file=sys.stderr)
    if content["failures"]:
        sys.exit(1)


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
def main(config: DictConfig) -> None:
    with one_job(), errors_for_people():
        run(config)


if __name__ == "__main__":
    launch_jobs(main)
