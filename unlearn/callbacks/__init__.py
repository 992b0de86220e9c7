"""Measurement and safety: callbacks read the model and never train it."""
