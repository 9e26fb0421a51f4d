"""The compression job on Ray: choices and placement; every step calls embedcomp."""
