"""`trimtab eval`: settings compared on the same prompts by rewards, with intervals, and their answers side by side."""
