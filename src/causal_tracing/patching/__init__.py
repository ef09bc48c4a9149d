"""The experiment: options, which worlds make a cell, and from logits to labelled numbers."""
