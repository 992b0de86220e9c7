"""Tensors in, tensors out: no modules, no configuration, no files."""
