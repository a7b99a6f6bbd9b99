"""Judge a checkpoint, a function or stored predictions on a data set: see configs/eval.yaml for every key.

python scripts/eval.py dataset=nyu checkpoint=DIR
python scripts/eval.py -m dataset=nyu,kitti,eth3d,scannet,diode checkpoint=DIR
accelerate launch --num_processes 2 scripts/eval.py dataset=nyu checkpoint=DIR
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import hydra
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from marigold.config import build, errors_for_people, launch, to_dataclass
from marigold.data.base import DepthDataset
from marigold.evaluation import predictors, provenance
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.evaluate import Row
from marigold.evaluation.protocol import Protocol, settings_for
from marigold.evaluation.report import metrics_table, single_table
from marigold.evaluation.results import results, write_results
from marigold.evaluation.rows import RowStore, write_csv
from marigold.evaluation.session import PredictSample, draw_panel, run_seed, worst_and_median

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Sampler:
    """How a diffusion model is sampled; None leaves the choice to the checkpoint."""

    steps: int | None
    ensemble_size: int
    ensemble_method: str
    reduction: str
    processing_resolution: int
    batch_size: int | None


@dataclass(frozen=True)
class Panel:
    """How many images of which kind the picture shows."""

    worst: int
    median: int


@dataclass(frozen=True)
class EvalConfig:
    """The plain keys of configs/eval.yaml."""

    checkpoint: str | None
    predictor: str | None
    predictions: str | None
    space: str | None
    prediction_unit: float
    precision: str
    seed: int
    seeds: int
    limit: int | None
    on_error: str
    metrics: list[str]
    output: str | None
    device: str | None
    threads: int

    def __post_init__(self) -> None:
        chosen = [key for key in ("checkpoint", "predictor", "predictions") if getattr(self, key)]
        if len(chosen) != 1:
            raise EvaluationError(
                f"give exactly one of checkpoint=DIR, predictor=MODULE:FUNCTION and predictions=DIR; "
                f"got {', '.join(chosen) or 'none'}"
            )
        for key, allowed in (("precision", tuple(DTYPES)), ("on_error", ("raise", "report"))):
            if getattr(self, key) not in allowed:
                raise EvaluationError(f"{key}={getattr(self, key)}: expected one of {', '.join(allowed)}")
        for key in ("seeds", "threads"):
            if getattr(self, key) < 1:
                raise EvaluationError(f"{key}={getattr(self, key)}: expected at least 1")


@dataclass(frozen=True)
class Judge:
    """What predicts: `identity` goes into the results and the fingerprint, `at_seed` gives the predictor.

    `space` is None for a function that states it only with each prediction.
    """

    identity: dict[str, Any]
    space: str | None
    sampler: dict[str, Any] | None
    at_seed: Callable[[int], PredictSample]


def make_protocol(config: DictConfig) -> Protocol:
    """The protocol of the configuration, resolved for its data set."""
    evaluation = OmegaConf.to_container(config.dataset.evaluation, resolve=True)
    settings = OmegaConf.create(settings_for(evaluation, config.protocol.name))  # type: ignore[arg-type]
    return build(config.protocol, "protocol", benchmark=build(settings, "dataset.evaluation"))


def make_samples(node: DictConfig, protocol: Protocol, where: str) -> DepthDataset:
    """A data set's samples, read as the protocol wants them read: `reader`, changed by `reader_for.PROTOCOL`."""
    changes = (node.get("reader_for") or {}).get(protocol.name) or {}
    reader = OmegaConf.merge(node.reader, changes)
    reader._set_parent(node)
    return build(reader, f"{where}.reader")


def make_judge(settings: EvalConfig, sampler: Sampler, device: torch.device) -> Judge:
    """The predictor that the configuration names."""
    if settings.predictions:
        folder = Path(settings.predictions)
        predict = predictors.stored(folder, settings.space, settings.prediction_unit)
        identity = {"name": folder.name, "path": str(folder), "files": provenance.files_identity(folder)}
        return Judge(identity, settings.space, None, lambda seed: predict)
    named = settings.predictor or ""
    if ":" in named and not Path(named).exists():
        sys.path.insert(0, "")  # modules are looked for in the working folder too
        function = predictors.imported(named, settings.space)
        source = sys.modules[named.partition(":")[0]].__file__
        identity = {"name": named, "files": provenance.files_identity(Path(source)) if source else "built in"}
        return Judge(
            identity, settings.space, None, lambda seed: lambda sample: function(sample.image[None].to(device))
        )
    return load_checkpoint(settings.checkpoint or named, sampler, settings.precision, device)


def load_checkpoint(path: str, chosen: Sampler, precision: str, device: torch.device) -> Judge:
    """A Marigold folder in diffusers layout, sampled as the configuration says."""
    from marigold.model.pipeline import MarigoldDepth  # diffusers takes seconds to import; stored predictions don't

    model = MarigoldDepth.from_pretrained(path, torch_dtype=DTYPES[precision]).to(device)
    arguments = {**asdict(chosen), "steps": model.default_steps if chosen.steps is None else chosen.steps}
    folder = Path(path)
    files = provenance.files_identity(folder) if folder.is_dir() else path
    sampler = {**arguments, "precision": precision}

    def at_seed(seed: int) -> PredictSample:
        return lambda sample: model(sample.image[None], seed=seed, **arguments)

    return Judge({"name": run_name(folder), "path": path, "files": files}, model.space, sampler, at_seed)


def run_name(checkpoint: Path) -> str:
    """What a table calls a checkpoint: the folder's name, for one of a training run the run's name in front."""
    parts = checkpoint.resolve().parts
    depth = 2 if checkpoint.name in ("final", "best") else 3 if parts[-2:-1] == ("checkpoints",) else 1
    return "/".join(parts[-depth:])


class Progress:
    """A bar over this process's images with the running mean of AbsRel, on the main process only."""

    def __init__(self, total: int, label: str, shown: bool) -> None:
        self.bar = tqdm(total=total, desc=label, unit="image", disable=not shown, mininterval=0.5)
        self.sum, self.count = 0.0, 0

    def __call__(self, row: Row) -> None:
        if row.error is None and "abs_rel" in row.metrics:
            self.sum, self.count = self.sum + row.metrics["abs_rel"], self.count + 1
            self.bar.set_postfix_str(f"mean AbsRel {self.sum / self.count:.4f}", refresh=False)
        self.bar.update()


def output_folder(settings: EvalConfig, runs: str, name: str, fingerprint: str) -> Path:
    """Where the results go; several jobs of one multirun never share a folder."""
    if settings.output is None:
        return Path(runs) / "eval" / f"{name}-{fingerprint[:8]}"
    several = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return Path(settings.output) / name if several else Path(settings.output)


def set_up(config: DictConfig) -> tuple[Protocol, DepthDataset, PartialState, torch.device]:
    """The protocol and the images of the configuration, this process's place among the others, and its device."""
    protocol = make_protocol(config)
    if config.limit is not None:
        OmegaConf.update(config, "dataset.reader.limit", config.limit, force_add=True)
    dataset = make_samples(config.dataset, protocol, "dataset")
    torch.set_num_threads(config.threads)
    # A process that is done waits for the slowest one.
    state = PartialState(cpu=config.device == "cpu", timeout=timedelta(hours=12))
    return protocol, dataset, state, torch.device(config.device) if config.device else state.device


def run(config: DictConfig) -> None:
    """Evaluate as configured; raises ValueError or OSError with one line for a person."""
    OmegaConf.resolve(config)
    settings = to_dataclass(EvalConfig, OmegaConf.masked_copy(config, [field.name for field in fields(EvalConfig)]))
    sampler = to_dataclass(Sampler, config.sampler, "sampler")
    pictures = to_dataclass(Panel, config.panel, "panel")
    protocol, dataset, state, device = set_up(config)
    if settings.predictions and protocol.benchmark.view_size is not None:
        raise EvaluationError(
            f"protocol={protocol.name} shows the predictor a re-projected photo of {dataset.name}; stored predictions "
            "are of the data set's own photos. Give checkpoint=DIR or predictor=MODULE:FUNCTION"
        )
    judge = make_judge(settings, sampler, device)
    if judge.space is not None:
        protocol.require_space(judge.space)
    header = {
        "dataset": dataset.name,
        "protocol": protocol.describe(),
        "split": asdict(dataset.split),
        "limit": settings.limit,
        "predictor": {**judge.identity, "space": judge.space},
        "sampler": judge.sampler,
    }
    code = {"source": provenance.source_hash(), "metrics": settings.metrics, "torch": torch.__version__}
    fingerprint = provenance.fingerprint({**header, **code})
    folder = output_folder(settings, config.paths.runs, f"{dataset.name}-{protocol.name}", fingerprint)
    store = RowStore(folder, fingerprint, state.process_index)
    done = store.load()
    state.wait_for_everyone()  # nobody writes before all have read
    rows = {}
    for seed in range(settings.seed, settings.seed + settings.seeds):
        left = [name for name in dataset.names[state.process_index :: state.num_processes] if (seed, name) not in done]
        progress = Progress(len(left), f"{dataset.name}, seed {seed}", state.is_main_process)
        rows[seed] = run_seed(
            judge.at_seed(seed),
            dataset,
            protocol,
            seed,
            done,
            store,
            metrics=settings.metrics,
            rank=state.process_index,
            world=state.num_processes,
            gather=gather_object,
            on_row=progress,
            on_error=settings.on_error,  # type: ignore[arg-type]
        )
        progress.bar.close()
    if not state.is_main_process:
        return
    content = results(
        {**header, "commit": provenance.commit(), "fingerprint": fingerprint},
        rows,
        len(dataset),
        protocol.benchmark.groups,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "per_image.csv", rows)
    write_results(folder / "results.json", content)
    chosen = worst_and_median(rows[settings.seed], pictures.worst, pictures.median)
    if chosen:
        draw_panel(folder / "panel.png", chosen, judge.at_seed(settings.seed), dataset, protocol)
    print(f"\n{metrics_table(content)}\n\n{single_table(content)}\n")
    print(f"written to {folder}: results.json, per_image.csv{', panel.png' if chosen else ''}")
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
