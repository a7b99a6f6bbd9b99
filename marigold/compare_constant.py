"""Compare an evaluation's AbsRel with the AbsRel of constant predictions on the same pixels."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.fits import BestConstant, LeastSquares
from marigold.evaluation.protocol import PREFIT, Protocol
from marigold.evaluation.result import Result
from marigold.evaluation.rows import Predict, evaluate, gather_rows, summarise
from marigold.evaluation_set import EvaluationSet, named_protocol, open_set
from marigold.identity import differences, listed
from marigold.types import Prediction


def run(config: DictConfig) -> None:
    """Print the AbsRel of the result and of two constants, the ratios, and where the panel is.

    Raises EvaluationError for a result on other pixels than the configuration's.
    """
    folder = Path(config.results)
    result = Result.from_json(folder / "results.json")
    if "points" in result.facts.protocol:
        raise EvaluationError(f"{folder}: a constant is compared under least squares, and this is from known points")
    # The protocol, prefit included, is the result's; the command line gives only the data set.
    OmegaConf.update(config, "protocol.prefit", result.protocol.endswith(PREFIT), force_add=True)
    node = named_protocol(config, result.protocol.removesuffix(PREFIT))
    chosen = open_set(config, result.facts.limit, node)
    require_same_pixels(result, chosen, folder / "results.json")
    samples, protocol = chosen.samples, chosen.protocol
    ours = result.metrics["abs_rel"].mean
    lines = [f"AbsRel {ours:.4f}"]
    # The first is aligned as a prediction is; the second is the optimum given the ground truth.
    fits = {
        "a constant, aligned by least squares like every prediction": protocol,
        "the best constant, chosen per image for AbsRel with the ground truth": replace(protocol, fit=BestConstant()),
    }
    for what, fitted in fits.items():
        rows = gather_rows(list(evaluate(constant(fitted), samples, fitted, metrics=["abs_rel"])), len(samples))
        mean = summarise(rows).metrics["abs_rel"].mean
        lines.append(f"{what}: {mean:.4f}, ratio {ours / mean:.3f}")
    print("\n".join([*lines, f"panel: {folder / 'panel.png'}"]))


def constant(protocol: Protocol) -> Predict:
    """A constant prediction in a space that the protocol evaluates; the fit chooses its value."""
    space = protocol.spaces[0]
    return lambda sample: Prediction(torch.full_like(sample.depth[None], 0.5), None, space)  # type: ignore[arg-type]


def require_same_pixels(result: Result, chosen: EvaluationSet, path: Path) -> None:
    """Raises EvaluationError if a result was measured on other pixels, or with a fit that is not least squares."""
    name, protocol = chosen.samples.name, chosen.protocol.describe()
    if result.facts.split.sha256 != chosen.samples.split.sha256:
        raise EvaluationError(f"{path} was made on another split than dataset {name}")
    # As in results.json: JSON turns tuples into lists.
    if result.facts.protocol != json.loads(json.dumps(protocol)):
        raise EvaluationError(f"{path} was made under another protocol")
    different = differences(result.facts.reader, chosen.reader)
    if different:
        read = listed(different, "the result", "here")
        raise EvaluationError(f"{path}: its data were read otherwise ({read}); evaluate again")
    if not isinstance(chosen.protocol.fit, LeastSquares):
        raise EvaluationError(f"protocol '{chosen.protocol.name}': a constant is compared under least squares only")
