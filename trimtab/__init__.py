"""A test-time alignment inference server. Each package here is a folder at the top of the repository."""
