"""A backend that runs worlds through nnsight's own traces: in this process, or on a server that has the model."""
