"""HTTP: vLLM's app with our endpoints in it and our middleware around it."""
