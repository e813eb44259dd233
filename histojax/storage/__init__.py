"""Buckets: objects at `gs://` and `s3://` addresses, and local copies of them."""
