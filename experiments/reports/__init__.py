"""Reports: pages for people, made from results that programs wrote."""
