"""The mathematics of depth maps: tensors in, tensors out; it knows neither files nor models."""
