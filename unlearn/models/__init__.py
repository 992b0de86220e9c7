"""Language models and SAEs: loading, capture, trainable selection, reference."""
