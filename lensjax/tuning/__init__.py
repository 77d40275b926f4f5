"""Other libraries' searches of hyperparameters, whose trials end early by the joint fit of all their curves."""
