"""Which SAE latents matter, and the frozen model's activations of known and unknown entities."""
