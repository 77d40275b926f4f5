"""Fine-tuning curves: the table, its files, scaling laws, and public and simulated tables."""
