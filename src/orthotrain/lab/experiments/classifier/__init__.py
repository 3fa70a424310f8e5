"""Training two kinds of classifiers: the shared half of the low-rank and the spectral family."""
