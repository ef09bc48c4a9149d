"""Metrics: what is read of a world's logits, from the built-in ones to a user's own."""
