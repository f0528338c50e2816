"""The mathematics of sampling: PyTorch and the standard library only. Read core.py first."""
