"""Other frameworks on flashkit's ground; each module imports its framework, and flashkit imports none of them.

`flashkit.integrations.langgraph` keeps LangGraph's checkpoints in plain Redis.
"""
