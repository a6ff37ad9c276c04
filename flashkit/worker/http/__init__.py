"""Load-balanced workers: typed routes and mounted applications behind an HTTP server of their own."""
