"""From a name to a network whose parts are named."""
