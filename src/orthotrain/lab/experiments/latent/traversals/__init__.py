"""What each latent dimension of a generator does: a figure, and a page where one can drag it."""
