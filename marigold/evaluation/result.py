"""results.json: every number with its protocol, split, count, sampler settings, seeds and commit."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.rows import Row, Summary, summarise
from marigold.files import write_atomically

FORMAT = 1
Plain = Mapping[str, object]
"""Values that JSON has, by name."""


@dataclass(frozen=True)
class Split:
    """The list that was evaluated; `official`: whether it is the published one, None where there is none."""

    name: str
    path: str
    count: int
    sha256: str
    official: bool | None
    part: bool = False


@dataclass(frozen=True)
class Facts:
    """What the numbers depend on, without the seed, and the fingerprint of that.

    `limit`: so many images of the set, None for all. `sampler` is None for what is not a diffusion model. `commit`
    is not in the fingerprint: another commit with the same source gives the same rows.
    """

    dataset: str
    protocol: Plain
    split: Split
    reader: Plain
    limit: int | None
    predictor: Plain
    sampler: Plain | None
    commit: str
    fingerprint: str


@dataclass(frozen=True)
class Score:
    """Mean of a metric over images and seeds.

    `std_over_images` is that of one image's score, `std_over_seeds` (sample standard deviation, None for one seed)
    that of the whole table's numbers.
    """

    mean: float
    std_over_images: float
    std_over_seeds: float | None


@dataclass(frozen=True)
class Group:
    """The images of one group of the data set."""

    count: int
    metrics: dict[str, Score]


@dataclass(frozen=True)
class SeedMeans:
    """The means over images at one seed."""

    seed: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Failure:
    """An image that could not be evaluated."""

    seed: int
    name: str
    reason: str


@dataclass(frozen=True)
class Result:
    """One evaluation of one data set. `complete` is false when an image is missing or failed; `date` is in UTC."""

    date: str
    facts: Facts
    seeds: tuple[int, ...]
    count: int
    expected: int
    complete: bool
    metrics: dict[str, Score]
    groups: dict[str, Group]
    per_seed: tuple[SeedMeans, ...]
    failures: tuple[Failure, ...]

    @property
    def method(self) -> str:
        """What tables call the predictor."""
        return str(self.facts.predictor["name"])

    @property
    def protocol(self) -> str:
        """The protocol's name."""
        return str(self.facts.protocol["name"])

    @property
    def setting(self) -> str:
        """Denoising steps x ensemble size, empty for what is not a diffusion model."""
        sampler = self.facts.sampler
        return f"{sampler['steps']} x {sampler['ensemble_size']}" if sampler else ""

    def to_json(self, path: Path) -> None:
        """Write results.json whole or not at all."""
        content = asdict(self)
        facts = content.pop("facts")
        date = content.pop("date")
        text = json.dumps({"format": FORMAT, "date": date, **facts, **content}, indent=1, allow_nan=False)
        write_atomically(path, text + "\n")

    @classmethod
    def from_json(cls, path: Path) -> "Result":
        """Read a results.json; one without a date gets its file's. Raises EvaluationError naming what is not one."""
        try:
            content = json.loads(path.read_text())
            written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, expected {FORMAT}")
            # Earlier versions wrote neither of these.
            content = {"date": _date(written), "reader": {}, "limit": None, **content}
            facts = {field.name: content[field.name] for field in fields(Facts)}
            return cls(
                date=content["date"],
                facts=Facts(**{**facts, "split": Split(**content["split"])}),
                seeds=tuple(content["seeds"]),
                count=content["count"],
                expected=content["expected"],
                complete=content["complete"],
                metrics=_scores(content["metrics"]),
                groups={
                    label: Group(group["count"], _scores(group["metrics"]))
                    for label, group in content["groups"].items()
                },
                per_seed=tuple(SeedMeans(**one) for one in content["per_seed"]),
                failures=tuple(Failure(**one) for one in content["failures"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"{path}: not a results.json of this version ({error!r}); evaluate again") from error


def make_result(
    facts: Facts, rows: Mapping[int, Sequence[Row]], expected: int, groups: dict[str, str] | None
) -> Result:
    """The means over images, averaged over the seeds, as of now.

    `rows`: seed -> one row per image. `expected`: images that the data set lists.
    """
    summaries = {seed: summarise(part, groups) for seed, part in rows.items()}
    several = list(summaries.values())
    count = min(summary.count for summary in several)
    return Result(
        date=_date(datetime.now(UTC)),
        facts=facts,
        seeds=tuple(rows),
        count=count,
        expected=expected,
        complete=count == expected,
        metrics=over_seeds(several),
        groups={
            label: Group(
                min(summary.groups[label].count for summary in several),
                over_seeds([summary.groups[label] for summary in several]),
            )
            for label in sorted(set.intersection(*(set(summary.groups) for summary in several)))
        },
        per_seed=tuple(
            SeedMeans(seed, {name: value.mean for name, value in summary.metrics.items()})
            for seed, summary in summaries.items()
        ),
        failures=tuple(
            Failure(seed, row.name, row.error) for seed, part in rows.items() for row in part if row.error is not None
        ),
    )


def over_seeds(summaries: Sequence[Summary]) -> dict[str, Score]:
    """Metric -> its score over seeds."""
    table = {}
    for name in summaries[0].metrics:
        means = [summary.metrics[name].mean for summary in summaries]
        mean = math.fsum(means) / len(means)
        squares = math.fsum((value - mean) ** 2 for value in means)
        table[name] = Score(
            mean,
            math.fsum(summary.metrics[name].std for summary in summaries) / len(summaries),
            math.sqrt(squares / (len(means) - 1)) if len(means) > 1 else None,
        )
    return table


def _scores(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, Score]:
    numbers = {
        name: {key: None if value is None else float(value) for key, value in score.items()}
        for name, score in metrics.items()
    }
    return {name: Score(**score) for name, score in numbers.items()}  # type: ignore[arg-type]


def _date(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds")
