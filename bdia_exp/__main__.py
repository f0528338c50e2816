"""`python -m bdia_exp` and `torchrun -m bdia_exp`: the same as `bdia-exp`."""

from bdia_exp.cli import main

main()
