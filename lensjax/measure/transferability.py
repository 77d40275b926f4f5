"""How well a model's hidden states tell targets apart, without any training: LogME and the H-score.

Both are of features of N examples and of their classes. Here features are what a layer has where the first token of a
target is predicted, classes are those tokens, and scores are means over layers. Examples are few beside the width of
most models, so the H-score is that of a shrunk covariance: without, it is the same for all models.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int

from lensjax.core.errors import InputError
from lensjax.core.flops import matmul_flops
from lensjax.models.losses import IGNORED
from lensjax.models.model import Batch, Model

ROWS = 8  # of a forward pass
_FLATTEST, _STEEPEST, _STEP = -30.0, 20.0, 0.5  # of the log of λ, less that of the largest eigenvalue
_FINER, _ROUNDS = 5, 4


@dataclass(frozen=True)
class Transferability:
    """Scores of a model before fine-tuning; more is better.

    Attributes:
      logme, h_score: of every layer's states.
      classes: Number of different tokens that targets begin with.
    """

    logme: Float[np.ndarray, " layers"]
    h_score: Float[np.ndarray, " layers"]
    classes: int


def log_me(features: Float[np.ndarray, "N D"], classes: Int[np.ndarray, " N"]) -> float:
    """LogME (You et al., arXiv 2102.11005): the log evidence of an example by linear regression, in nats.

    Of each class, y is 1 for its examples and 0 for others, y ~ N(F w, 1/β) with w ~ N(0, 1/α), and log p(y | F) / N is
    that of the best α and β; LogME is the mean over classes. With λ = α / β the best β is known, so that a search
    along λ finds the maximum, also where there are several.

    Args:
      features: F, of N examples.
      classes: their numbers.
    """
    count = len(features)
    _, place = np.unique(classes, return_inverse=True)
    y = np.eye(place.max() + 1)[place]
    left, sizes, _ = np.linalg.svd(np.asarray(features, np.float64), full_matrices=False)
    energy = np.maximum(sizes**2, np.finfo(np.float64).tiny)
    along = (left.T @ y).T ** 2  # [classes, r]
    beside = np.maximum((y**2).sum(axis=0) - along.sum(axis=1), 0)

    def evidence(log_ratio: Float[np.ndarray, "G classes"]) -> Float[np.ndarray, "G classes"]:
        growth = 1 + np.exp(np.log(energy / energy[0]) - log_ratio[..., None])
        variance = ((along / growth).sum(axis=-1) + beside) / count
        log_p: Float[np.ndarray, "G classes"] = -(
            np.log(2 * np.pi * np.maximum(variance, np.finfo(np.float64).tiny)) + 1
        ) / 2 - np.log(growth).sum(axis=-1) / (2 * count)
        return log_p

    tried = np.arange(_FLATTEST, _STEEPEST, _STEP)[:, None] + np.zeros(len(along))
    step = _STEP
    for _ in range(_ROUNDS):
        best = np.take_along_axis(tried, np.argmax(evidence(tried), axis=0)[None], axis=0)
        step /= _FINER
        tried = best + step * np.arange(-_FINER, _FINER + 1)[:, None]
    return float(evidence(tried).max(axis=0).mean())


def h_score(features: Float[np.ndarray, "N D"], classes: Int[np.ndarray, " N"]) -> float:
    """The H-score with a shrunk covariance (Ibrahim et al., arXiv 2110.06893): tr(Σ_α⁻¹ (1 − α) Σ_classes).

    Σ_classes is the covariance of the means of classes, Σ_α = (1 − α) Σ + α tr(Σ) / D the covariance of features,
    shrunk as Ledoit and Wolf do (Journal of Multivariate Analysis, 2004).

    Args:
      features: of N examples.
      classes: their numbers.
    """
    count, width = features.shape
    centred = np.asarray(features, np.float64)
    centred = centred - centred.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    energy = sizes**2 / count  # eigenvalues of Σ
    usual, square = energy.sum() / width, (energy**2).sum()
    away = square - width * usual**2
    noise = (((centred**2).sum(axis=1) ** 2).mean() - square) / count
    share = min(noise / away, 1.0) if away > 0 else 0.0
    _, place, sizes_of_classes = np.unique(classes, return_inverse=True, return_counts=True)
    sums = np.eye(len(sizes_of_classes))[place].T @ left
    between = energy * (sums**2 / sizes_of_classes[:, None]).sum(axis=0)  # diagonal of Σ_classes along those of Σ
    shrunk = (1 - share) * energy + share * usual
    return float((1 - share) * (between / np.where(shrunk > 0, shrunk, 1.0)).sum())


def measure_transferability(model: Model, batch: Batch) -> Transferability:
    """LogME and H-score of the states of every layer of a model, and where there is an encoder too of its decoder.

    Args:
      model: Before fine-tuning.
      batch: {name: [N, time]}, see `lensjax.measure.probes`.

    Raises:
      InputError: all targets begin with the same token, or states are not finite.
    """
    classes, at = first_targets(model, batch)
    if len(np.unique(classes)) < 2:
        raise InputError(
            f"All {len(classes)} targets begin with the same token, so that there is nothing to tell apart; measure on "
            "more examples, or leave transferability out."
        )
    forward = jax.jit(model.without_params().layer_states)
    parts = [np.asarray(forward(model.params, *part)) for part in _parts(batch, at)]
    states = np.concatenate(parts, axis=1)[:, : len(at)]
    if not np.isfinite(states).all():
        raise InputError("The model's hidden states are not finite; fetch its weights again, or take another model.")
    logme, part = (np.array([score(layer, classes) for layer in states]) for score in (log_me, h_score))
    return Transferability(logme, part, len(np.unique(classes)))


def transferability_flops(model: Model, batch: Batch) -> int:
    """FLOPs of the forward passes of `measure_transferability`; the model may be abstract."""
    at = np.zeros(len(batch["labels"]), np.int32)
    parts = _parts(batch, at)
    return len(parts) * matmul_flops(model.without_params().layer_states, model.params, *parts[0])


def first_targets(model: Model, batch: Batch) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """The first target token of every example, and the position that predicts it."""
    labels = np.asarray(batch["labels"])
    first = (labels != IGNORED).argmax(axis=1)
    tokens = labels[np.arange(len(labels)), first]
    return tokens, (first if model.family.encoder_decoder else np.maximum(first - 1, 0)).astype(np.int32)


def _parts(batch: Batch, at: Int[np.ndarray, " N"]) -> list[tuple[Batch, Int[np.ndarray, " rows"]]]:
    """The batch in parts of equally many rows, of which the last has some twice."""
    count = len(at)
    rows = [np.arange(start, start + ROWS) % count for start in range(0, count, ROWS)]
    return [({name: np.asarray(array)[some] for name, array in batch.items()}, at[some]) for some in rows]
