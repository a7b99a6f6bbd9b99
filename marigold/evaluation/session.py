"""One evaluation of all images at one seed: resumed, spread over processes, gathered, and drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, runtime_checkable
from typing import Protocol as Interface

import torch.nn.functional as F

from marigold.evaluation.evaluate import OnError, Row, evaluate_samples, judge, merge_rows
from marigold.evaluation.protocol import Judged, Protocol
from marigold.evaluation.rows import Done, RowStore
from marigold.types import DepthSample, Prediction
from marigold.visualization import PanelRow, panel

PredictSample = Callable[[DepthSample], Prediction]
Gather = Callable[[list[Any]], list[Any]]
"""Lists of all processes put together, such as accelerate's `gather_object`."""


@runtime_checkable
class NamedSamples(Interface):
    """A sequence of samples whose names are known without reading them."""

    name: str
    split: Any  # a dataclass that says which list the samples are from

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> DepthSample: ...


@dataclass(frozen=True)
class Processes:
    """This process's place among those that share the images, and how they meet."""

    rank: int
    world: int
    gather: Gather
    wait: Callable[[], None]


def run_seed(
    predict: PredictSample,
    samples: NamedSamples,
    protocol: Protocol,
    seed: int,
    done: Done,
    store: RowStore,
    *,
    metrics: Sequence[str],
    processes: Processes,
    on_row: Callable[[Row], None],
    on_error: OnError,
) -> list[Row]:
    """The rows of all images, sorted by name, the same on every process.

    Rows in `done` are kept, the others are shared among the processes and written to `store` one by
    one. Raises EvaluationError as `evaluate_samples` and `merge_rows` do.
    """
    kept = [done[seed, name] for name in samples.names if (seed, name) in done]
    skip = {index for index, name in enumerate(samples.names) if (seed, name) in done}

    def keep(row: Row) -> None:
        store.append(seed, row)
        on_row(row)

    rows = evaluate_samples(
        predict,
        samples,  # type: ignore[arg-type]
        protocol,
        metrics=metrics,
        rank=processes.rank,
        world=processes.world,
        skip=skip,
        on_row=keep,
        on_error=on_error,
    )
    return merge_rows([*processes.gather([rows]), kept], len(samples))


def worst_and_median(rows: Sequence[Row], worst: int, median: int) -> list[tuple[str, Row]]:
    """("worst", row) for the `worst` images by AbsRel, then ("median", row) for those around the median."""
    ranked = sorted((row for row in rows if row.error is None), key=lambda row: (-row.metrics["abs_rel"], row.name))
    first = max(worst, (len(ranked) - median) // 2)
    return [("worst", row) for row in ranked[:worst]] + [("median", row) for row in ranked[first : first + median]]


def draw_panel(
    path: Path, chosen: Sequence[tuple[str, Row]], predict: PredictSample, samples: NamedSamples, protocol: Protocol
) -> None:
    """Predict the chosen images once more and write image | prediction | ground truth | error of each."""
    index = {name: position for position, name in enumerate(samples.names)}
    lines = []
    for kind, row in chosen:
        judged = judge(predict, protocol.shown(samples[index[row.name]]), protocol)
        lines.append(panel_row(f"{kind}: {row.name}  AbsRel {row.metrics['abs_rel']:.4f}", judged))
    panel(path, lines, f"{samples.name} under protocol '{protocol.name}'")


def panel_row(caption: str, judged: Judged) -> PanelRow:
    """One line of a panel: the photo that was shown, at the size that was judged."""
    image = F.interpolate(judged.image[None], judged.depth.shape[-2:], mode="area")[0]
    return PanelRow(caption, image, judged.depth[0], judged.target[0], judged.valid[0])
