"""The mathematics of depth maps: tensors in, tensors out, without files or models."""
