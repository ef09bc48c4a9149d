"""Results as files: written whole or not at all, and refused by name where they are damaged."""
