"""Settings for all tests."""

import jax
from hypothesis import settings

# Eight devices, on which sharding is tested; everything else uses the first.
jax.config.update("jax_num_cpu_devices", 8)

# The first example of a jitted function pays for its compilation, and shared machines stall.
settings.register_profile("lensjax", deadline=None, derandomize=True)
settings.load_profile("lensjax")
