"""Judge a checkpoint, a function or stored predictions on a data set: see configs/eval.yaml for every key.

python scripts/eval.py dataset=nyu checkpoint=DIR
python scripts/eval.py -m dataset=nyu,kitti,eth3d,scannet,diode checkpoint=DIR
accelerate launch --num_processes 2 scripts/eval.py dataset=nyu checkpoint=DIR
"""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from compose import set_up
from marigold.config import errors_for_people, launch, to_dataclass
from marigold.evaluate import reader_of
from marigold.evaluation import predictors
from marigold.evaluation.predictors import Predictor
from marigold.evaluation.report import metrics_table, single_table
from marigold.evaluation.run import Evaluation
from marigold.evaluation.settings import PRECISIONS, EvalSettings, Panel, Sampler


def make_predictor(settings: EvalSettings, sampler: Sampler, device: torch.device) -> Predictor:
    """What the configuration names."""
    if settings.predictions:
        return predictors.of_files(Path(settings.predictions), settings.space, settings.prediction_unit)
    named = settings.checkpoint or settings.predictor or ""
    if settings.predictor and ":" in named and not Path(named).exists():
        sys.path.insert(0, "")  # modules are looked for in the working folder too
        return predictors.of_function(named, settings.space, device)
    from marigold.model.pipeline import MarigoldDepth  # diffusers takes seconds to import; stored predictions don't

    model = MarigoldDepth.from_pretrained(named, torch_dtype=PRECISIONS[settings.precision]).to(device)
    return predictors.of_model(model, named, sampler, settings.precision)


def output_folder(settings: EvalSettings, runs: str, name: str, fingerprint: str) -> Path:
    """Where the results go; several jobs of one multirun never share a folder."""
    if settings.output is None:
        return Path(runs) / "eval" / f"{name}-{fingerprint[:8]}"
    several = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return Path(settings.output) / name if several else Path(settings.output)


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
    name, fingerprint = f"{samples.name}-{protocol.name}", evaluation.header["fingerprint"]
    folder = output_folder(settings, config.paths.runs, name, fingerprint)
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
    with errors_for_people():
        run(config)


if __name__ == "__main__":
    launch(main)
