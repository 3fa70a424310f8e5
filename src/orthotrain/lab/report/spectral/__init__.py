"""Reports of spectral runs: whitening and covariance pooling, NOG, OLR and what is beside them."""
