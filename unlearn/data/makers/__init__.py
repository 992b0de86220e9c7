"""Makers of forget sets: the model writes down what it knows of the targets."""
