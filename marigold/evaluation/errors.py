"""The error of everything that cannot be evaluated."""


class EvaluationError(ValueError):
    """A prediction, a ground truth or a setting cannot be evaluated; the message names the image and the reason."""
