"""pytest's own fixture for running pytest inside of a test."""

pytest_plugins = ["pytester"]
