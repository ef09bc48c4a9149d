"""What-ifs as values: sites, edits, runs and worlds. Nothing here runs anything."""
