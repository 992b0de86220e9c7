"""Forgetting as not knowing: SAE-guided unlearning of entities in language models."""

__version__ = "0.1.0"
