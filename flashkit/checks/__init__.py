"""The checks of `flashkit check`: rules as data, and pure functions over what an app and its project say.

Nothing here reads a file or starts a process. `flashkit.cli.check_project` makes the `Project` that rules look at.
"""
