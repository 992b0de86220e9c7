"""Unlearning methods: one file, one paper."""
