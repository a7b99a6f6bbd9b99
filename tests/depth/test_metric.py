"""Metric depth from known points: what must hold for every prediction, and what outliers and uncertainty are worth."""
