"""The live explorer: a page on this machine that traces what is typed, and opens what was saved."""
