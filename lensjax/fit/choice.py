"""What joint draws of all models' losses at one size say of choosing one of them."""

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Float

DRAWS = 4000


def probability_best(losses: Float[np.ndarray, "draws M"]) -> Float[np.ndarray, " M"]:
    """In which share of the draws each model has the lowest loss."""
    return np.bincount(np.argmin(losses, axis=1), minlength=losses.shape[1]) / len(losses)


def expected_regret(losses: Float[np.ndarray, "draws M"]) -> Float[np.ndarray, " M"]:
    """Mean over the draws of each model's loss above the lowest, in the unit of the losses."""
    return (losses - losses.min(axis=1, keepdims=True)).mean(axis=0)


class Choosing(ABC):
    """A posterior over curves that can be asked which model to choose."""

    @abstractmethod
    def sample(self, examples: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draws M"]:
        """Joint draws of all models' losses at one size."""

    def probability_best(self, examples: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, " M"]:
        """Probability that each model has the lowest loss at one size."""
        return probability_best(self.sample(examples, draws, seed))

    def expected_regret(self, examples: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, " M"]:
        """Expected loss above the best model's if this one is chosen, in nats per token."""
        return expected_regret(self.sample(examples, draws, seed))
