"""Fine-tuning: one point, or a whole ladder, of a curve of test loss against number of training examples."""
