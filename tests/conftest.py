"""Settings for all tests."""

from hypothesis import settings

# The first example of a jitted function pays for its compilation, and shared machines stall.
settings.register_profile("lensjax", deadline=None, derandomize=True)
settings.load_profile("lensjax")
