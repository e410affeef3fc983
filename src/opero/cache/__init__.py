"""What a cache is made of: keys, regions, and one computation at a time."""
