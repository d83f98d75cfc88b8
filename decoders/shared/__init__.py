"""What several strategies share: pools, blocks, token-wise search, streams, and how alike or settled answers are."""
