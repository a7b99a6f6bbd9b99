"""A whole evaluation of one data set: described, resumed, judged at every seed, written."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from marigold import provenance
from marigold.evaluation.evaluate import Row
from marigold.evaluation.predictors import Predictor
from marigold.evaluation.protocol import Protocol
from marigold.evaluation.results import results, write_results
from marigold.evaluation.rows import RowStore, write_csv
from marigold.evaluation.session import NamedSamples, Processes, draw_panel, run_seed, worst_and_median
from marigold.evaluation.settings import EvalSettings, Panel
from marigold.identity import fingerprint, identity


@dataclass(frozen=True)
class Evaluation:
    """One predictor on one data set under one protocol.

    `reader` holds the settings that the samples are read with, `device` is what the predictor is on. Raises
    EvaluationError for a predictor that the protocol cannot judge.
    """

    predictor: Predictor
    samples: NamedSamples
    reader: Mapping[str, Any]
    protocol: Protocol
    settings: EvalSettings
    device: torch.device

    def __post_init__(self) -> None:
        self.predictor.require_judgeable(self.protocol)

    @cached_property
    def header(self) -> dict[str, Any]:
        """What the numbers depend on, without the seed, and the fingerprint of that: the head of results.json.

        Another commit with the same source gives the same rows, so the commit is not in the fingerprint.
        """
        described = {
            "dataset": self.samples.name,
            "protocol": self.protocol.describe(),
            "split": asdict(self.samples.split),
            "reader": identity({"dataset": {"reader": self.reader}}, {}),
            # A limit that leaves nothing out is none, and the reader may have one of its own.
            "limit": len(self.samples) if self.samples.split.part else None,
            "predictor": {**self.predictor.identity, "space": self.predictor.space},
            "sampler": self.predictor.sampler,
        }
        program = {
            "source": provenance.source_hash(),
            "metrics": self.settings.metrics,
            "torch": torch.__version__,
            # Other kernels, other last bits
            "device": self.device.type,
            "threads": self.settings.threads,
        }
        return {
            **described,
            "commit": provenance.commit(),
            "fingerprint": fingerprint({**described, **program}),
        }

    def run(self, folder: Path, panel: Panel, processes: Processes) -> dict[str, Any] | None:
        """Judge every image at every seed and write results.json, per_image.csv and panel.png into `folder`.

        Rows that an earlier run with the same fingerprint left there are kept. Returns the content of
        results.json on the first process, None on the others. Raises EvaluationError naming an image that cannot
        be judged, unless `on_error` is `report`.
        """
        store = RowStore(folder, self.header["fingerprint"], processes.rank)
        done = store.load()
        processes.wait()  # nobody writes before all have read
        rows = {}
        for seed in self.settings.all_seeds:
            mine = self.samples.names[processes.rank :: processes.world]
            left = sum((seed, name) not in done for name in mine)
            with Progress(left, f"{self.samples.name}, seed {seed}", processes.rank == 0) as progress:
                rows[seed] = run_seed(
                    self.predictor.at_seed(seed),
                    self.samples,
                    self.protocol,
                    seed,
                    done,
                    store,
                    metrics=self.settings.metrics,
                    processes=processes,
                    on_row=progress,
                    on_error=self.settings.on_error,  # type: ignore[arg-type]
                )
        if processes.rank > 0:
            return None
        content = results(self.header, rows, len(self.samples), self.protocol.benchmark.groups)
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "per_image.csv", rows)
        write_results(folder / "results.json", content)
        # An earlier run's picture would stand beside this one's numbers.
        (folder / "panel.png").unlink(missing_ok=True)
        chosen = worst_and_median(rows[self.settings.seed], panel.worst, panel.median)
        if chosen:
            predict = self.predictor.at_seed(self.settings.seed)
            draw_panel(folder / "panel.png", chosen, predict, self.samples, self.protocol)
        return content


class Progress:
    """A bar over this process's images with the running mean of AbsRel, if it is `shown`."""

    def __init__(self, total: int, label: str, shown: bool) -> None:
        self.bar = tqdm(total=total, desc=label, unit="image", disable=not shown, mininterval=0.5)
        self.sum, self.count = 0.0, 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, row: Row) -> None:
        """Count one more image."""
        if row.error is None and "abs_rel" in row.metrics:
            self.sum, self.count = self.sum + row.metrics["abs_rel"], self.count + 1
            self.bar.set_postfix_str(f"mean AbsRel {self.sum / self.count:.4f}", refresh=False)
        self.bar.update()
