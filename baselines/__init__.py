"""What a learned policy has to beat."""
