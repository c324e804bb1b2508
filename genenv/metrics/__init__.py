"""How good, how varied and how costly generated images are."""
