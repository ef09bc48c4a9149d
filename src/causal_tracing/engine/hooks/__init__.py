"""Whole forwards with hooks: where a component is read and written, recording, gradients, and the plain engine."""
