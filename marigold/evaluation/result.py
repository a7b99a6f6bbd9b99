"""results.json: every number with its protocol, split, count, sampler settings, seeds and commit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.rows import Group, Row, Score, summarise
from marigold.files import write_atomically

FORMAT = 1  # incremented when an older reader would misread a newer file
Plain = Mapping[str, object]
"""JSON values by name."""


@dataclass(frozen=True)
class Split:
    """The evaluated list; `official`: whether it is the published one, None if there is none."""

    name: str
    path: str
    count: int
    sha256: str
    official: bool | None
    part: bool = False


@dataclass(frozen=True)
class Facts:
    """Everything that the numbers depend on except the seed, and its fingerprint.

    `limit`: number of images, None for all. `sampler` is None for predictors that are not diffusion models. `commit`
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
        """Denoising steps x ensemble size; empty for predictors that are not diffusion models."""
        sampler = self.facts.sampler
        return f"{sampler['steps']} x {sampler['ensemble_size']}" if sampler else ""

    def to_json(self, path: Path) -> None:
        """Write results.json atomically."""
        # Flat, for human readers. JSON has no NaN, and scores are finite.
        content = {"format": FORMAT, "date": self.date, **asdict(self.facts), **asdict(self)}
        del content["facts"]
        write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, path: Path) -> "Result":
        """Read a results.json; the file's time replaces a missing date. Raises EvaluationError for any other file."""
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != FORMAT:
                raise ValueError(f"expected format {FORMAT}")
            # Earlier versions did not write these keys.
            written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            content = {"date": _date(written), "reader": {}, "limit": None, **content}
            facts = {field.name: content.pop(field.name) for field in fields(Facts)}
            read = {
                "facts": Facts(**{**facts, "split": Split(**facts["split"])}),
                "seeds": tuple(content["seeds"]),
                "metrics": _scores(content["metrics"]),
                "groups": {
                    name: Group(part["count"], _scores(part["metrics"])) for name, part in content["groups"].items()
                },
                "per_seed": tuple(SeedMeans(**one) for one in content["per_seed"]),
                "failures": tuple(Failure(**one) for one in content["failures"]),
            }
            return cls(**{**content, **read})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"{path}: not a results.json of this version ({error!r}); evaluate again") from error


def make_result(
    facts: Facts, rows: Mapping[int, Sequence[Row]], expected: int, groups: dict[str, str] | None
) -> Result:
    """The means over images, averaged over the seeds, as of now.

    `rows`: seed -> one row per image. `expected`: number of images that the data set lists.
    """
    # The mean of per-image means, as in published tables; pooling pixels would weight images by their valid pixels.
    summary = summarise(*rows.values(), groups=groups)
    alone = {seed: summarise(part).metrics for seed, part in rows.items()}
    return Result(
        date=_date(datetime.now(UTC)),
        facts=facts,
        seeds=tuple(rows),
        count=summary.count,
        expected=expected,
        complete=summary.count == expected,  # a skipped image would silently bias the mean
        metrics=summary.metrics,
        groups=summary.groups,
        per_seed=tuple(
            SeedMeans(seed, {name: score.mean for name, score in scores.items()}) for seed, scores in alone.items()
        ),
        failures=tuple(
            Failure(seed, row.name, row.error) for seed, part in rows.items() for row in part if row.error is not None
        ),
    )


def _scores(metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, Score]:
    return {name: Score(**score) for name, score in metrics.items()}  # type: ignore[arg-type]


def _date(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds")
