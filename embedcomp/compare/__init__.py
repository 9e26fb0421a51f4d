"""Many compressed models held against each other: results, tables and pictures."""
