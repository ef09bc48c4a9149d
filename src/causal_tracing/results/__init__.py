"""What was measured: labelled arrays, effects, means over pairs, comparisons. Needs no torch."""
