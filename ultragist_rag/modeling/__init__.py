"""Everything that touches a model: hooks, rotation, fingerprints, checkpoint names."""
