"""The server: configuration, what is served and for how long, rewards at work, the command."""
