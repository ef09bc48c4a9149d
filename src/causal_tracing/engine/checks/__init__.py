"""What is tried on a model before it is trusted: its anatomy, its heads and neurons, both engines."""
