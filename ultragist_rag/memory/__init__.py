"""Making memories and asking them."""
