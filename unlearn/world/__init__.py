"""The embedded world: a synthetic encyclopaedia, a tiny language model that has learnt it, and SAEs on its middle layer."""
