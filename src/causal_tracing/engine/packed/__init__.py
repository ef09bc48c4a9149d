"""The fast engine: never computes what a patch cannot change, and packs what is left into a few large products."""
