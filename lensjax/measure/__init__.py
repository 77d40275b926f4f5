"""What is measured of a candidate: fine-tuned losses, kernels, Hessians, and weight metrics."""
