"""Searches against their peers at equal work: seconds, tokens and answers."""
