"""Rows of large tables in other processes: shards that hold slots, and fronts that ask them."""
