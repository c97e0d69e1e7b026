"""Estimators in scikit-learn's conventions: hand over data, get predictions, intervals and ranks."""

from bayestensor.estimators.classification import TensorClassifier
from bayestensor.estimators.completion import TensorCompletion
from bayestensor.estimators.regression import TensorRegressor

__all__ = ["TensorClassifier", "TensorCompletion", "TensorRegressor"]
