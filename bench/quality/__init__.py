"""How well a strategy does what it was asked, by scores of served answers; one file a study."""
