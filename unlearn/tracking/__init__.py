"""Run directory, manifest and MLflow."""
