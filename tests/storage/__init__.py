"""A small server of Cloud Storage's JSON API on loopback, for tests of what runs on buckets."""
