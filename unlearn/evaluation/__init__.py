"""Runs a model over rows and turns what comes out into results."""
