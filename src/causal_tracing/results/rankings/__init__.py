"""Rankings of a model's nodes and edges: from traces, and in files as other tools have them."""
