"""Other projects' searches, and plain loops around transformers, to compare ours with."""
