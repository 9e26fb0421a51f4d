"""`python -m embedcomp` is the `embedcomp` command."""

from embedcomp.cli.main import main

main()
