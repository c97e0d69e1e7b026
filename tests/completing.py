"""What tests of completion share."""

from __future__ import annotations

# parameters of a `TensorCompletion` that need not be good; no import here, for conftest.py sets XLA's flags first
FAST = {"max_rank": 3, "num_draws": 40, "burn_in": 10, "warm_up": 20, "smooth": (), "random_state": 0}
