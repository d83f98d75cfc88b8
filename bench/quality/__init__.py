"""How well a strategy does what it was asked, by gold scores of served answers; one file a study."""
