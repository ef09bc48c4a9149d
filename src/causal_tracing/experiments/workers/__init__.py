"""Many workers on one run: processes of this machine, or actors of Ray's on any number of machines."""
