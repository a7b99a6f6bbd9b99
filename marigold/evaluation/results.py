"""results.json: every number with its protocol, split, count, sampler settings, seeds and commit."""

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.evaluate import Row, Summary, summarise

FORMAT = 1


def results(
    header: Mapping[str, Any], rows: Mapping[int, Sequence[Row]], expected: int, groups: dict[str, str] | None
) -> dict[str, Any]:
    """The content of results.json.

    `rows`: seed -> one row per image. `expected`: images that the data set lists. The means over images are
    averaged over the seeds; `std_over_images` is that of one image's score, `std_over_seeds` (sample
    standard deviation, null for one seed) that of the whole table's numbers. `complete` is false when an
    image is missing or failed. `date` is now, in UTC.
    """
    summaries = {seed: summarise(part, groups) for seed, part in rows.items()}
    failures = [
        {"seed": seed, "name": row.name, "reason": row.error}
        for seed, part in rows.items()
        for row in part
        if row.error is not None
    ]
    count = min(summary.count for summary in summaries.values())
    labels = sorted(set.intersection(*(set(summary.groups) for summary in summaries.values())))
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="milliseconds"),
        **header,
        "seeds": list(rows),
        "count": count,
        "expected": expected,
        "complete": count == expected,
        "metrics": over_seeds(list(summaries.values())),
        "groups": {
            label: {
                "count": min(summary.groups[label].count for summary in summaries.values()),
                "metrics": over_seeds([summary.groups[label] for summary in summaries.values()]),
            }
            for label in labels
        },
        "per_seed": [
            {"seed": seed, "metrics": {name: value.mean for name, value in summary.metrics.items()}}
            for seed, summary in summaries.items()
        ],
        "failures": failures,
    }


def over_seeds(summaries: Sequence[Summary]) -> dict[str, dict[str, float | None]]:
    """Metric -> mean, standard deviation over images, and over seeds (None for a single one)."""
    table = {}
    for name in summaries[0].metrics:
        means = [summary.metrics[name].mean for summary in summaries]
        mean = math.fsum(means) / len(means)
        squares = math.fsum((value - mean) ** 2 for value in means)
        table[name] = {
            "mean": mean,
            "std_over_images": math.fsum(summary.metrics[name].std for summary in summaries) / len(summaries),
            "std_over_seeds": math.sqrt(squares / (len(means) - 1)) if len(means) > 1 else None,
        }
    return table


def write_results(path: Path, content: Mapping[str, Any]) -> None:
    """Write results.json whole or not at all."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".tmp") as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def read_results(path: Path) -> dict[str, Any]:
    """Read a results.json; an old one gets its file's date. Raises EvaluationError naming what is not one."""
    try:
        content = json.loads(path.read_text())
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: not a results file: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise EvaluationError(f"{path}: not a results file of format {FORMAT}; evaluate again")
    return {"date": written.isoformat(timespec="milliseconds"), **content}
