"""Small models for the recipes."""
