"""What the author of a model needs: `segnode models new`, `seal`, `check` and `pack`."""
