"""How good and how varied generated images are."""
