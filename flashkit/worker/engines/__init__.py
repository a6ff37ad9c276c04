"""Models inside workers, one engine a file; their libraries are imported when an engine is loaded."""
