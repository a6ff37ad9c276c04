"""The local platform: Runpod's job API and worker wire on this machine, with workers as processes."""
