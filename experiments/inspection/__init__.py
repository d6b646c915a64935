"""What a configuration means before it runs, and whether two of them compute the same."""
