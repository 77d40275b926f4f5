"""The slope of a power law with a floor, L = A D^-β + E; its log drifts along a Wiener path.

Its numbers are the log slope at `CENTRE` octaves and the logit of the share of the loss there that no data removes,
ρ = E / L. The slope is P · (1 - ρ), with P = β log 2, and ρ / (1 - ρ) grows by the factor exp(P) in each octave.
"""

import numpy as np
from jaxtyping import Float

from lensjax.fit.joint.shapes import (
    CENTRE,
    LARGEST,
    SHAPES,
    USUAL_SLOPE,
    Medians,
    Shape,
    middles,
    softplus,
    wiener_path,
)


def floor_slope(numbers: Float[np.ndarray, "2 *b 1"], path: Float[np.ndarray, "*b T"]) -> Float[np.ndarray, "*b T"]:
    """Slope in each octave, by its middle."""
    log_v, logit_rho = numbers
    log_p = np.minimum(log_v + softplus(logit_rho), LARGEST)
    reducible = -softplus(np.exp(log_p) * (middles(path.shape[-1]) - CENTRE) + logit_rho)
    slopes: np.ndarray = np.exp(np.minimum(log_p + reducible + path, LARGEST))
    return slopes


SHAPES.register("floor")(
    Shape(
        slopes=floor_slope,
        path=wiener_path,
        medians=Medians(
            shared=(0.7, 1.0, 0.2), model=(0.4, 0.5, 0.15), family=(0.3, 0.3, 0.1), covariate=(0.2, 0.2, 0.05)
        ),
        centre=np.array([np.log(USUAL_SLOPE), -1.5]),
    )
)
