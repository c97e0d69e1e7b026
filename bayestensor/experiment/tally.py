"""What a run learns from each draw, in bounded memory: sums of predictions, and a few numbers a draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from bayestensor.metrics import classification
from bayestensor.ranks.explore import BondRanks, RankPosterior, shares
from bayestensor.typing import Position

if TYPE_CHECKING:
    from bayestensor.models.neural import NeuralModel

PROBES = 8  # test data whose predictions are followed from draw to draw
ECE_BINS = 15


class Watched(NamedTuple):
    """A set that every draw predicts; no labels where only certainty matters."""

    x: Any
    labels: np.ndarray | None


class Tally:
    """Sums over draws. `arrays` is all of its state, so that a checkpoint can hold it.

    Args:
        model: whose positions the draws are.
        predict: (position, raw inputs) -> log class probabilities.
        sets: name -> data to predict; "test" has labels.
        position: one position, for shapes.
        chains, draws: how many there will be.
    """

    def __init__(
        self,
        model: NeuralModel,
        predict: Callable[[Position, Any], Any],
        sets: Mapping[str, Watched],
        position: Position,
        chains: int,
        draws: int,
    ):
        self._predict, self.sets = predict, dict(sets)
        self._norms = jax.jit(lambda position: shares(model.tensors(position)))
        classes = jax.eval_shape(predict, position, self.sets["test"].x).shape[-1]
        labelled = [name for name, data in self.sets.items() if data.labels is not None]
        self.arrays: dict[str, Any] = {
            "done": np.zeros((), np.int64),  # draws of every chain
            "sums": {name: np.zeros((len(data.x), classes)) for name, data in self.sets.items()},
            "log_likelihood": {name: np.zeros((chains, draws)) for name in labelled},
            # of each label, summed over draws as logs: a draw can be surer of a wrong class than floats can say
            "log_sums": {name: np.full(len(self.sets[name].x), np.finfo(np.float64).min) for name in labelled},
            "probes": np.zeros((chains, draws, min(PROBES, len(self.sets["test"].x)))),
            "norms": jax.tree.map(
                lambda x: np.zeros((chains, draws, *x.shape), np.float32), jax.eval_shape(self._norms, position)
            ),
        }

    @property
    def done(self) -> int:
        """Draws of every chain so far."""
        return int(self.arrays["done"])

    @property
    def shape(self) -> tuple[int, int]:
        """Chains, draws of each so far."""
        return self.arrays["probes"].shape[0], self.done

    def add(self, positions: Position) -> None:
        """Take in draws [chain, draw, ...]."""
        chains, count = jax.tree.leaves(positions)[0].shape[:2]
        for chain, draw in np.ndindex(chains, count):
            self._add_one(chain, self.done + draw, jax.tree.map(lambda x: x[chain, draw], positions))  # noqa: B023
        self.arrays["done"] = self.arrays["done"] + count

    def _add_one(self, chain: int, draw: int, position: Position) -> None:
        for name, data in self.sets.items():
            log_p = np.asarray(self._predict(position, data.x), np.float64)
            self.arrays["sums"][name] += np.exp(log_p)
            if data.labels is None:
                continue
            own = np.take_along_axis(log_p, data.labels[:, None].astype(np.int64), axis=1)[:, 0]
            self.arrays["log_likelihood"][name][chain, draw] = own.mean()
            self.arrays["log_sums"][name] = np.logaddexp(self.arrays["log_sums"][name], own)
            if name == "test":
                probes = self.arrays["probes"]
                probes[chain, draw] = np.exp(own[: probes.shape[2]])
        for layer, bonds in self._norms(position).items():
            for bond, norms in bonds.items():
                self.arrays["norms"][layer][bond][chain, draw] = -np.sort(-np.asarray(norms))

    # --- what it comes to ---------------------------------------------------------------------------------------

    def probabilities(self, name: str) -> np.ndarray:
        """The mixture's, (n, classes)."""
        chains = self.arrays["probes"].shape[0]
        return self.arrays["sums"][name] / (chains * self.done)

    def nll(self, name: str) -> tuple[float, float]:
        """Mean negative log likelihood a datum: of the mixture, and the mean of the members' own."""
        chains = self.arrays["probes"].shape[0]
        mixture = np.log(chains * self.done) - self.arrays["log_sums"][name].mean()
        return float(mixture), float(-self.arrays["log_likelihood"][name][:, : self.done].mean())

    def accuracy(self, name: str) -> float:
        """Of the mixture."""
        labels = self.sets[name].labels
        assert labels is not None
        return classification.accuracy(self.probabilities(name), labels)

    def ranks(self) -> RankPosterior:
        """The posterior over ranks so far."""
        norms = jax.tree.map(lambda x: x[:, : self.done], self.arrays["norms"])
        return RankPosterior(
            {layer: {bond: BondRanks(x) for bond, x in bonds.items()} for layer, bonds in norms.items()}
        )

    def functionals(self) -> dict[str, np.ndarray]:
        """Gauge-invariant numbers of every draw, [chain, draw, ...]: what convergence is judged by."""
        found = {"test log likelihood": self.arrays["log_likelihood"]["test"], "predictions": self.arrays["probes"]}
        for layer, bonds in self.arrays["norms"].items():
            found |= {f"slice norms of {layer} {bond}": x for bond, x in bonds.items() if x.shape[2] > 1}
        return {name: x[:, : self.done] for name, x in found.items()}

    def quality(self) -> dict[str, Any]:
        """Scores of the mixture on the test set, and how well it tells strangers from friends."""
        probabilities, labels = self.probabilities("test"), self.sets["test"].labels
        mixture, members = self.nll("test")
        auroc = None
        if "ood" in self.sets:
            entropies = (classification.predictive_entropy(self.probabilities(name)) for name in ("test", "ood"))
            auroc = classification.ood_auroc(*entropies)
        held_out = "validation" in self.sets
        return scores(probabilities, labels) | {
            "test_nll": mixture,
            "test_nll_members": members,
            "ood_auroc": auroc,
            "validation_accuracy": self.accuracy("validation") if held_out else None,
            "validation_nll": self.nll("validation")[0] if held_out else None,
        }


def scores(probabilities: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
    """What summary.json says of the test set's class probabilities, apart from their likelihood."""
    assert labels is not None
    diagram = classification.reliability(probabilities, labels, ECE_BINS)
    return {
        "test_accuracy": classification.accuracy(probabilities, labels),
        "test_ece": classification.expected_calibration_error(probabilities, labels, ECE_BINS),
        "ece_bins": ECE_BINS,
        "test_brier": classification.brier(probabilities, labels),
        "confusion": classification.confusion_matrix(probabilities, labels).tolist(),
        "reliability": {name: np.asarray(value).tolist() for name, value in diagram._asdict().items()},
    }
