"""Substitutes for data and weights: rendered rooms, a tiny base, its pretraining.

Nothing else in the package imports it; configurations name it.
"""
