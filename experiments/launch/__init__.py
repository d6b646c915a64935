"""Starting runs where the accelerators are: manifests and scripts from a run's Gin files."""
