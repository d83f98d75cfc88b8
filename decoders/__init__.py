"""Alignment strategies: one file, one paper. Tokens in, tokens out."""
