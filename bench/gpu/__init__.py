"""What a GPU has to show: that the engine is right there, and how fast it is; one file a step."""
