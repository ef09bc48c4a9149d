"""What can be patched beside single sites: one file a kind, with its grid and the edits of its cells."""
