"""The study: from a list of candidates and a data set to a decision (LensLLM, arXiv 2505.03793, Algorithm 1)."""
