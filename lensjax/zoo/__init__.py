"""Small models and real tasks that LensJAX brings along, to try it on a machine without a network."""
