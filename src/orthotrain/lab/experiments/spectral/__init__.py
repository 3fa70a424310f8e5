"""A spectral layer and the treatments of the weight before it."""
