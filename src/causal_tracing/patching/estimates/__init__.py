"""What stands in for patching: estimates by gradient, verified by cells that are patched."""
