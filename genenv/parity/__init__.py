"""Compares genenv with reference vectors of the official implementations (`python -m genenv.parity DIR`)."""
