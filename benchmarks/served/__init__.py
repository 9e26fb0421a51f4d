"""What the benchmarks of serving share: servers on a core of their own, and the load on another."""
