"""From a prepared dataset to numpy batches; numpy, grain, TFDS and OpenCV, never jax."""
