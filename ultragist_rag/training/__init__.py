"""Training: data, objectives, and the loop that runs a curriculum."""
