"""Identities: everything that a run, a latent cache or a result depends on, and how two of them differ.

Every setting belongs to one of three classes: it decides numbers, it moves them by rounding only, or it decides
nothing. A key that no pattern below names decides numbers, so a new setting is compared until it is listed here.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# A pattern covers a key and all below it; * stands for one part of a key.
ROUNDING = ("device", "processes", "performance")
# Of a training run's configuration (configs/train.yaml); tests/training/test_identity.py trains with other values.
NOTHING = (
    "name",
    "run_dir",
    "paths",
    "tracker",
    "export",
    # They choose `best/`, not the weights.
    "protocol",
    "validation",
    # The name of a recipe, and whether its switches are inherited; the switches themselves are compared.
    "recipe.name",
    "recipe.inherit",
    "train.select_by",
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.validate_every",
    "train.keep_checkpoints",
    "train.verify_checkpoints",
    "train.workers",
    "train.time_limit",
    # Where a base is found; its weights and configuration are compared instead.
    "model.base",
    "model.search",
    "model.revision",
    "model.licence",
    "model.maker",
    "cache.folder",
    "cache.shard_size",
    "cache.batch",
    # The description of a training set, and how it is evaluated.
    "data.*.licence",
    "data.*.held_out",
    "data.*.evaluation",
    "data.*.reader_for",
    "data.*.reader.cameras",
    "data.*.reader.labels",  # where a teacher's labels are; their content is compared
    # Where any data set is found; the lines that were read are compared instead.
    *(
        f"{entry}.reader.{key}"
        for entry in ("data.*", "dataset")
        for key in ("name", "root", "split_list", "limit", "official_split", "how_to_get", "image_size")
    ),
)


class Difference(NamedTuple):
    """One key on which two identities disagree."""

    key: str
    theirs: Any
    ours: Any


def covers(pattern: str, key: str) -> bool:
    """Whether a pattern stands for the dotted key, or for one above it."""
    parts, wanted = key.split("."), pattern.split(".")
    return len(parts) >= len(wanted) and all(w in ("*", part) for w, part in zip(wanted, parts, strict=False))


def decides_nothing(key: str) -> bool:
    """Whether no bit of a run or result depends on the setting `key`, such as `train.workers`."""
    return any(covers(pattern, key) for pattern in NOTHING)


def moves_by_rounding(key: str) -> bool:
    """Whether the setting `key` changes the order of sums or the kernels, and nothing else."""
    return any(covers(pattern, key) for pattern in ROUNDING)


def identity(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that numbers depend on, as a flat dict of plain JSON values.

    settings: nested, resolved configuration; keys that decide nothing are left out. facts: the content that settings
    only name, such as the hash of a list or of weights; always kept.
    """
    kept = {key: value for key, value in flatten(settings).items() if not decides_nothing(key)}
    return json.loads(json.dumps({**kept, **facts}, default=str))


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Difference]:
    """The keys on which two identities disagree, sorted; a key that one of them lacks counts as None."""
    keys = sorted({*theirs, *ours})
    return [Difference(key, theirs.get(key), ours.get(key)) for key in keys if theirs.get(key) != ours.get(key)]


def listed(found: Iterable[Difference], theirs: str, ours: str) -> str:
    """The differences as one line: `train.lr: checkpoint 0.1, this run 0.2; ...`."""
    return "; ".join(f"{key}: {theirs} {there!r}, {ours} {here!r}" for key, there, here in found)


def fingerprint(facts: Mapping[str, Any]) -> str:
    """sha256 of plain values: two evaluations with the same one give the same rows."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; an infinity, which JSON does not have, becomes its name."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value) if isinstance(value, float) and not math.isfinite(value) else value
    return flat
