"""Substitutes for data and weights: rendered rooms, a tiny base and its pretraining.

Nothing else in the package imports them; configurations name them.
"""
