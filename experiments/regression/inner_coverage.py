"""Do intervals cover what they say? Inner folds of the training part of outer fold FOLD: `inner_coverage.py TASK FOLD`.

Coverage by level and response, standard deviation and excess kurtosis of standardised errors, and log scores: of the
mixture of kernels as it is, and with spreads held at 1.
"""

from __future__ import annotations

import sys
import warnings

import numpy as np
import scipy.stats
from run import splits
from sklearn.model_selection import KFold

from bayestensor import TensorRegressor
from bayestensor.data.covariates import COVARIATE_SETS
from bayestensor.estimators import stacking

warnings.filterwarnings("ignore")
LEVELS = (0.5, 0.8, 0.9, 0.95)

if __name__ == "__main__":
    task, fold = sys.argv[1], int(sys.argv[2])
    data = COVARIATE_SETS[task]()
    train, _ = splits(task, data.x, data.y, 0)[fold]
    x, y = data.x[train].astype(float), data.y[train]
    for name, spreads in (("narrowed", stacking.SPREADS), ("as wide as it is", (1.0,))):
        stacking.SPREADS = spreads
        inside, errors, scores = [], [], []
        for rest, test in KFold(5, shuffle=True, random_state=1).split(x):
            model = TensorRegressor(random_state=0).fit(x[rest], y[rest])
            ends = [model.predict_interval(x[test], level) for level in LEVELS]
            inside.append(np.stack([(y[test] >= low) & (y[test] <= high) for low, high in ends]))
            mean, sd = model.predict(x[test], return_std=True)
            errors.append((y[test] - mean) / sd)
            scores.append(model.log_score(x[test], y[test]))
        covered, errors = np.concatenate(inside, axis=1).mean(axis=1).T, np.concatenate(errors)
        print(f"{task}, fold {fold}, {name}: log score {np.mean(scores):.3f}")
        for k, shares in enumerate(covered):
            figures = ", ".join(f"{level} {share:.3f}" for level, share in zip(LEVELS, shares, strict=True))
            tails = f"sd {errors[:, k].std():.3f}, excess kurtosis {scipy.stats.kurtosis(errors[:, k]):.1f}"
            print(f"  response {k}: {figures}; errors: {tails}", flush=True)
