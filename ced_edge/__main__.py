"""`python -m ced_edge` and `torchrun -m ced_edge`: the command line."""

from ced_edge.cli import main

main()
