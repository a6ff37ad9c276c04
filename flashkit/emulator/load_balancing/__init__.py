"""Load-balanced endpoints: requests of any kind go straight to HTTP servers in the workers."""
