"""Shards and fronts on Ray, which places, names, restarts and finds them; ids do not pass it."""
