"""Generators, and every treatment of their latent weight."""
