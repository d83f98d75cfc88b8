"""`trimtab load`: requests over HTTP at a rate or a concurrency, and how each fared."""
