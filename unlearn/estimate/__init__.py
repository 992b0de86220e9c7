"""What a run will need, before it is started: memory by part and time per step, from the shapes alone and no weights."""
