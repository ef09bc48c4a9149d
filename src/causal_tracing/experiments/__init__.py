"""The public verbs and what they give back: load, trace, run, attribute, compare, and what a trace would cost."""
