"""scikit-learn's own laws of estimators (`check_estimator`), every one of them, with few draws."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from bayestensor.estimators import TensorClassifier, TensorRegressor

FEW = {"num_draws": 25, "burn_in": 25, "chains": 1, "smooth": (), "remainder": None, "random_state": 0}


@pytest.mark.slow
@parametrize_with_checks([TensorRegressor(**FEW), TensorClassifier(**FEW)])
def test_it_is_a_scikit_learn_estimator(estimator, check):
    check(estimator)
