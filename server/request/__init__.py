"""One request: its body, its `alignment` checked and made into a plan, and what that may cost."""
