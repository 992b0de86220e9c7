"""torchmetrics classes over the pure functions."""
