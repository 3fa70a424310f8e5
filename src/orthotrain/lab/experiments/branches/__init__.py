"""Low-rank branches of a dense run against narrow networks, whatever is trained."""
