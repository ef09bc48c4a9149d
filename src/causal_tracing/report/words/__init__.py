"""Numbers in sentences that claim no more than was measured."""
