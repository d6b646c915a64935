"""The model: attention, modules, loss, FLOPs."""
