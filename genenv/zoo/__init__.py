"""Recipes that train the shipped generators and judges."""
