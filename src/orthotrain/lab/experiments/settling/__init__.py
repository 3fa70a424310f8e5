"""Does a basis settle, or do steps only become short: trainings beside random walks."""
