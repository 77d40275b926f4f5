"""The slope of the rectified law L = B / (D_l + D^β) + E (arXiv 2402.02314); models deviate in its parameters.

Its parameters enter as three numbers that curves identify well: at `CENTRE` octaves, the slope v, the share of the
transition behind us s = D^β / (D_l + D^β), and the share of the loss that no data removes ρ = E / L. From them
b = v / (s (1 - ρ)) is β log 2.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Float

from lensjax.fit.joint.shapes import CENTRE, SHAPES, USUAL_SLOPE, Medians, Shape, wiener_path

LEAST_SLOPE = 1e-9  # below which slopes are lost in rounding
LAW_CENTRE = np.array([np.log(USUAL_SLOPE), 0.7, -0.7])  # prior means of log v, logit s and logit ρ


def law_log_loss(numbers: Float[Array, "3"], x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log L(x) - log L(CENTRE) of the law with the given log v, logit s and logit ρ."""
    log_v, logit_s, logit_rho = numbers
    b, rho = jnp.exp(log_v) / (sigmoid(logit_s) * (1 - sigmoid(logit_rho))), sigmoid(logit_rho)
    reducible = log_sigmoid(-(b * (x - CENTRE) + logit_s)) - log_sigmoid(-logit_s)
    return jnp.log(rho + (1 - rho) * jnp.exp(reducible))


def law_slope(numbers: Float[Array, "3"], octaves: int) -> Float[Array, " T"]:
    """Fall of log L in each octave."""
    losses = law_log_loss(numbers, jnp.arange(octaves + 1.0))
    return losses[:-1] - losses[1:]


SHAPES.register("law")(
    Shape(
        log_slopes=lambda numbers, octaves: jnp.log(law_slope(numbers, octaves) + LEAST_SLOPE),
        path=wiener_path,
        medians=Medians(
            shared=(0.8, 0.8, 0.8, 0.2),
            model=(0.4, 0.5, 0.4, 0.15),
            family=(0.3, 0.4, 0.3, 0.1),
            covariate=(0.2, 0.25, 0.2, 0.05),
        ),
        centre=LAW_CENTRE,
    )
)
