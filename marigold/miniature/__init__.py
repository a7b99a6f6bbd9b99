"""What a newcomer without data and weights uses: rendered rooms, a tiny base, its pretraining.

Nothing else in the package imports it; configurations name it.
"""
