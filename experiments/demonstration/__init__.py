"""The demo: its models, its stages, and how long they take."""
