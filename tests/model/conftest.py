import diffusers
import pytest
import transformers
from tiny_models import tiny_model

from marigold.miniature.random_base import SIZES, build_components
from marigold.model.backbone import Backbone
from marigold.model.pipeline import MarigoldDepth

diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def base() -> Backbone:
    """A fresh text-to-image model with random weights."""
    return build_components(0, *SIZES["tiny"])


@pytest.fixture(scope="session")
def depth_model() -> MarigoldDepth:
    """A depth estimator with random weights; not to be changed."""
    return tiny_model()
