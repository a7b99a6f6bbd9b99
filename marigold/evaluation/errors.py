"""The error of everything that is judged wrongly rather than computed wrongly."""


class EvaluationError(ValueError):
    """A prediction, a ground truth or a setting cannot be judged; the message names the image and the reason."""
