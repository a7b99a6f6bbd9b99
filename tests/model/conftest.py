import diffusers
import pytest
import transformers

from marigold.miniature.random_base import SIZES, build_components
from marigold.model.backbone import Backbone
from marigold.model.pipeline import DepthSettings, MarigoldDepth
from marigold.model.recipe import Switches

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def base() -> Backbone:
    """A fresh text-to-image model with random weights."""
    return build_components(0, *SIZES["tiny"])


@pytest.fixture(scope="session")
def depth_model() -> MarigoldDepth:
    """A depth estimator with random weights; not to be changed."""
    base = build_components(0, *SIZES["tiny"], in_channels=8)
    return MarigoldDepth(base, DepthSettings(Switches(), True, True, 2, 0))
