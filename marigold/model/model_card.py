"""The model card of a checkpoint: metadata for the hub, and facts for its users."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

from marigold.depth.mapping import MAPPINGS
from marigold.model.lora import WHOLE, Lora
from marigold.model.recipe import Switches

USAGE = """```python
import marigold
from PIL import Image

model = marigold.MarigoldDepth.from_pretrained("PATH")
prediction = model(Image.open("photo.jpg"))
prediction.depth  # (1, 1, H, W) in [0, 1], NEAR
```

"""
STOCK = 'It also loads as `diffusers.MarigoldDepthPipeline.from_pretrained("PATH")`.'
NOT_STOCK = (
    "diffusers' own pipeline does not sample it rightly and refuses it; `python scripts/export.py checkpoint=PATH "
    "output=DIR format=diffusers` writes a folder that it reads."
)
LIMITS = (
    "Depth is affine-invariant: right up to one unknown scale and one unknown shift per image. Metres need at least "
    "two known distances (`marigold.metric_depth`). Mirrors, glass and sky are guesses."
)

ALONE = " `adapter/` holds it alone, for peft or diffusers and the base."
EXPORTED = "`scripts/export.py` folded a recipe into the weights for that, which leaves the predictions as they were"
ONE_STEP = "; one step, the default, is the only valid number"
NO_NOISE = ", and an ensemble has nothing to average: the noise that diffusers draws changes nothing"


@dataclass(frozen=True)
class Score:
    """One metric of an evaluation, such as abs_rel 0.055 over 654 images of nyu."""

    dataset: str
    count: int
    metric: str
    value: float


def model_card(
    *,
    name: str,
    base: str,
    licence: str | None,
    data: Mapping[str, str],
    switches: Switches,
    settings: Mapping[str, object],
    scores: Sequence[Score] = (),
    revision: str | None = None,
    notes: str = "",
    lora: Lora = WHOLE,
) -> str:
    """Write the README.md of a checkpoint: metadata for the hub, then base, data, settings, scores, licences.

    `base` is a hub id or a folder, `licence` the base's, under the hub's identifier; a fine-tuned checkpoint stays
    under it. `data`: training set -> its licence. `switches`: how it predicts. `settings`: facts of the run
    (`commit`, `steps`, ...), `notes`: a sentence on its weaknesses. `lora`: the adapters that were merged into it.
    Unknown licences (None, "") are reported as unknown.
    """
    source = f"{base} at {revision}" if revision else base
    by = f" By LoRA of {lora} on the projections of the U-Net's attention, merged into `unet/`.{ALONE}"
    sections = {
        "Base": f"Fine-tuned from `{source}`, licence: {licence or 'unknown; ask where the base came from'}."
        + (by if lora.on else ""),
        "Training data": "\n".join(f"- {name}: {terms or 'licence unknown'}" for name, terms in data.items()),
        "Settings": _table(("setting", "value"), settings.items()),
        "Scores": _table(
            ("data set", "images", "metric", "value"),
            ((score.dataset, score.count, score.metric, f"{score.value:.4f}") for score in scores),
        )
        if scores
        else "Not evaluated.",
        "Use": USAGE.replace("NEAR", f"{switches.space}, near = {0 if MAPPINGS[switches.mapping].increasing else 1}")
        + (STOCK if switches.stock else NOT_STOCK),
        "Limits": f"{LIMITS} {notes}".strip(),
        "Method": "Ke et al., Repurposing Diffusion-Based Image Generators for Monocular Depth Estimation, CVPR 2024 "
        "([arXiv 2312.02145](https://arxiv.org/abs/2312.02145)).",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    metadata = _metadata(name, base, licence, scores)
    return f"---\n{metadata.to_yaml()}\n---\n\n# {name}\n\nMonocular depth estimation with Marigold.\n\n{body}\n"


def exported_card(card: str, switches: Switches) -> str:
    """Adapt the original's model card to a checkpoint that was exported for diffusers and predicts by `switches`.

    Only the sentences on diffusers and on the adapter, which is not exported, change.
    """
    one_step, no_noise = ONE_STEP if switches.one_pass else "", NO_NOISE if switches.silent else ""
    return card.replace(ALONE, "").replace(NOT_STOCK, f"{STOCK} {EXPORTED}{one_step}{no_noise}.")


def _metadata(name: str, base: str, licence: str | None, scores: Sequence[Score]) -> ModelCardData:
    """Metadata for the hub's search, its links between models and its tables of results."""
    results = [
        EvalResult(
            task_type="depth-estimation",
            dataset_type=score.dataset,
            dataset_name=f"{score.dataset} ({score.count} images)",
            metric_type=score.metric,
            metric_value=score.value,
        )
        for score in scores
    ]
    return ModelCardData(
        license=licence or "other",  # the hub's word for licences without an identifier
        # The hub links a base by its id; a folder would be a dead link.
        base_model=base if base.count("/") == 1 and not base.startswith((".", "/")) else None,
        library_name="diffusers",
        pipeline_tag="depth-estimation",
        tags=["depth", "monocular-depth-estimation", "marigold"],
        model_name=name if results else None,  # the hub knows this key only together with results
        eval_results=results or None,
        ignore_metadata_errors=False,
    )


def _table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    # An unescaped bar would start another cell.
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
