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
from marigold.identity import differences, identity, listed


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
    if results["protocol"] != json.loads(json.dumps(protocol.describe())):
        raise ValueError(f"{folder}/results.json was made under another protocol")
    different = differences(results.get("reader", {}), identity({"dataset": {"reader": reader}}, {}))
    if different:
        read = listed(different, "the result", "here")
        raise ValueError(f"{folder}/results.json: its data were read otherwise ({read}); evaluate again")
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
