"""Settings of each recipe; data alone, so torch is not imported."""
