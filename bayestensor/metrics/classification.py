"""How good class probabilities are: likelihood, calibration, confusion, and telling strangers from friends.

NumPy in, NumPy out. `probs` is (n, classes), a predictive distribution a datum; `log_probs` is (members, n, classes),
one a draw, chain or particle; `labels` is (n,) of whole numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "LogLikelihood",
    "Reliability",
    "accuracy",
    "brier",
    "confusion_matrix",
    "expected_calibration_error",
    "log_likelihood",
    "mixture",
    "ood_auroc",
    "predictive_entropy",
    "reliability",
]


class LogLikelihood(NamedTuple):
    """Mean log likelihood a datum, two ways; `mixture >= members` (Jensen). Their negatives are the usual NLL."""

    mixture: float  # log of the members' mean probability: the predictive distribution's own
    members: float  # mean of the members' own log likelihoods


class Reliability(NamedTuple):
    """Confidence (largest probability) against accuracy, in `bins` equal bins over [0, 1]; nan where a bin is empty."""

    edges: np.ndarray  # (bins + 1,)
    counts: np.ndarray  # (bins,) data in each
    confidence: np.ndarray  # (bins,) mean confidence
    accuracy: np.ndarray  # (bins,) share that is right


def mixture(log_probs: ArrayLike) -> np.ndarray:
    """`log(mean over members of exp(log_probs))`: (members, n, classes) -> (n, classes)."""
    log_probs = np.asarray(log_probs, np.float64)
    if log_probs.ndim != 3 or not len(log_probs):
        raise ValueError(f"log_probs has shape {log_probs.shape}; (members, n, classes) is needed, with a member")
    top = log_probs.max(axis=0)
    top = np.where(np.isfinite(top), top, 0.0)  # a class that every member gives zero
    with np.errstate(divide="ignore"):
        return top + np.log(np.exp(log_probs - top).mean(axis=0))


def log_likelihood(log_probs: ArrayLike, labels: ArrayLike) -> LogLikelihood:
    """Mean log likelihood a datum of the mixture, and the mean of the members' own.

    The literature reports either under one name; the gap between them grows with the members' disagreement.
    """
    log_probs = np.asarray(log_probs, np.float64)
    mixed = mixture(log_probs)
    _, labels = _checked(np.exp(mixed), labels)
    own = np.take_along_axis(log_probs, labels[None, :, None], axis=2)
    return LogLikelihood(float(np.take_along_axis(mixed, labels[:, None], axis=1).mean()), float(own.mean()))


def accuracy(probs: ArrayLike, labels: ArrayLike) -> float:
    """Share of data whose most probable class is the label."""
    probs, labels = _checked(probs, labels)
    return float((probs.argmax(axis=1) == labels).mean())


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """`mean over data of sum over classes of (p - onehot)^2`, from 0 to 2."""
    probs, labels = _checked(probs, labels)
    return float(np.mean((probs**2).sum(axis=1) - 2 * probs[np.arange(len(labels)), labels] + 1))


def reliability(probs: ArrayLike, labels: ArrayLike, bins: int = 15) -> Reliability:
    """The reliability diagram: bin k holds confidences in `(k / bins, (k + 1) / bins]`."""
    probs, labels = _checked(probs, labels)
    if not isinstance(bins, (int, np.integer)) or bins < 1:
        raise ValueError(f"bins is {bins!r}; a whole number of at least 1 is needed")
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, bins + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(which, confidence, bins) / count
        mean_accuracy = np.bincount(which, right, bins) / count
    return Reliability(edges, count, mean_confidence, mean_accuracy)


def expected_calibration_error(probs: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """`sum_k count_k / n |accuracy_k - confidence_k|` over the bins of `reliability` (Guo et al., ICML 2017)."""
    diagram = reliability(probs, labels, bins)
    gap = np.abs(diagram.accuracy - diagram.confidence)
    return float(np.nansum(diagram.counts * gap) / diagram.counts.sum())


def confusion_matrix(probs: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Counts (classes, classes): row the label, column the most probable class."""
    probs, labels = _checked(probs, labels)
    classes = probs.shape[1]
    return np.bincount(labels * classes + probs.argmax(axis=1), minlength=classes**2).reshape(classes, classes)


def predictive_entropy(probs: ArrayLike) -> np.ndarray:
    """`-sum p log p` in nats, (n,): the usual score for `ood_auroc`."""
    probs = np.asarray(probs, np.float64)
    return -np.where(probs > 0, probs * np.log(np.where(probs > 0, probs, 1.0)), 0.0).sum(axis=-1)


def ood_auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """P(score of a datum from outside > score of one from inside), ties counted half: 0.5 is chance."""
    from sklearn.metrics import roc_auc_score

    inside, outside = np.ravel(inside), np.ravel(outside)
    if not inside.size or not outside.size:
        raise ValueError(f"{inside.size} scores from inside and {outside.size} from outside; each needs at least one")
    truth = np.repeat([0, 1], [inside.size, outside.size])
    return float(roc_auc_score(truth, np.concatenate([inside, outside])))


def _checked(probs: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or not len(labels):
        raise ValueError(
            f"probs has shape {probs.shape}, labels {labels.shape}; (n, classes) and (n,) with n > 0 needed"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= probs.shape[1]:
        raise ValueError(f"labels must be whole numbers from 0 to {probs.shape[1] - 1}, one a column of probs")
    if not (probs >= 0).all() or not np.allclose(probs.sum(axis=1), 1.0, atol=1e-3):  # a NaN fails the first
        raise ValueError("each row of probs must be non-negative and sum to 1; were logits passed?")
    return probs, labels.astype(np.intp)
