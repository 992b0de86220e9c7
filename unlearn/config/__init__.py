"""Typed configuration: schema, loading, overrides, fingerprint."""
