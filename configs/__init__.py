"""What to run: an ml_collections config a file, an experiment each."""
