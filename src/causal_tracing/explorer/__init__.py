"""The live explorer: a page on this machine that traces what is typed, and opens what was saved."""

# Here, where the help of the command finds it without loading anything else.
LIMIT_TOKENS = 64  # of a prompt, where no other limit is asked for
