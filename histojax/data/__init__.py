"""From a prepared dataset to numpy batches; uses numpy, grain, TFDS and OpenCV, but never jax."""
