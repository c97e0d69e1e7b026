"""Estimators in scikit-learn's conventions: hand over data, get predictions, intervals and ranks."""

from bayestensor.estimators.completion import TensorCompletion

__all__ = ["TensorCompletion"]
