"""A language model: low-rank branches of a dense run against narrow networks."""
