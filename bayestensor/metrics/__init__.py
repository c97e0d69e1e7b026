"""Scores of predictions, and what a model costs."""

from bayestensor.metrics import classification, cost, regression

__all__ = ["classification", "cost", "regression"]
