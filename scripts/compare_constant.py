"""Compare an evaluation's AbsRel with that of constant predictions on the same images.

python scripts/compare_constant.py dataset=rooms results=runs/quickstart/eval
"""

import json
import math
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from compose import limit_reader, make_samples
from marigold.config import errors_for_people, launch
from marigold.evaluate import make_protocol, reader_of
from marigold.evaluation.constant import aligned_constant_abs_rel, constant_abs_rel
from marigold.evaluation.results import read_results
from marigold.evaluation.run import plain_reader


@hydra.main(version_base="1.3", config_path="../configs", config_name="compare_constant")
def main(config: DictConfig) -> None:
    with errors_for_people():
        print(compare(config))


def compare(config: DictConfig) -> str:
    """Three lines and a path for a person: the figure, two constants with their ratios, and where the picture is."""
    folder = Path(config.results)
    results = read_results(folder / "results.json")
    protocol = make_protocol(config.protocol, config.dataset)
    limit_reader(config, results["limit"])
    dataset = make_samples(config.dataset, protocol, "dataset")
    if results["split"]["sha256"] != dataset.split.sha256:
        raise ValueError(f"{folder}/results.json was made on another split than dataset {dataset.name}")
    reader: Any = OmegaConf.to_container(reader_of(config.dataset, protocol.name), resolve=True)
    ours_read, theirs_read = ({**plain_reader(read), "root": None} for read in (reader, results.get("reader", {})))
    if results["protocol"] != json.loads(json.dumps(protocol.describe())):
        raise ValueError(f"{folder}/results.json was made under another protocol")
    if ours_read != theirs_read:
        keys = sorted(set(ours_read) | set(theirs_read))
        other = [f"{key}={theirs_read.get(key)}" for key in keys if ours_read.get(key) != theirs_read.get(key)]
        raise ValueError(
            f"{folder}/results.json: its data were read otherwise, with dataset.reader {', '.join(other)}"
        )
    if results["protocol"]["fit"].get("quantity") != "depth":
        raise ValueError(f"protocol '{protocol.name}': a constant is compared under least squares of depth only")
    ours = results["metrics"]["abs_rel"]["mean"]
    lines = [f"AbsRel {ours:.4f}"]
    constants = {
        "a constant, aligned by least squares like every prediction": aligned_constant_abs_rel,
        "the best constant, chosen per image for AbsRel with the ground truth": constant_abs_rel,
    }
    shown = (protocol.shown(sample) for sample in dataset)
    masked = [(sample.depth, sample.valid & protocol.mask(sample.depth[None])[0]) for sample in shown]
    for what, score in constants.items():
        mean = math.fsum(score(depth, valid) for depth, valid in masked) / len(masked)
        lines.append(f"{what}: {mean:.4f}, ratio {ours / mean:.3f}")
    return "\n".join([*lines, f"picture: {folder / 'panel.png'}"])


if __name__ == "__main__":
    launch(main)
