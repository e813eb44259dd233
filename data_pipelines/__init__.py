"""From a published archive to a prepared dataset on disk: scan, check, prepare and split images."""
