"""The embedded world: a synthetic encyclopaedia, a tiny model that has learnt it, and its SAEs."""
