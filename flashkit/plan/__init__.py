"""Planning before anything is paid for: what a model needs, computed from its own description."""
