"""A worker that never comes up."""

raise ImportError("the weights are not where they should be")
