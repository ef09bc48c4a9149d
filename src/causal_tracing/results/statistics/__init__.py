"""Estimates, intervals and tests over pairs."""
