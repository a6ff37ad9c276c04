"""Models inside workers, one engine a file; their libraries are imported when an engine is loaded.

`engine` says what a worker needs of any of them.
"""
