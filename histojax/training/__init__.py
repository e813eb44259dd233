"""From a config to a trained model: program, loop, checkpoints, monitoring."""
