"""Preference weights: from a person's choices, from the prompt alone, and as a direction in reward space."""
