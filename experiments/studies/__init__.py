"""Studies: protocols, statistics and fits of many training runs."""
