"""The mathematics of sampling: PyTorch and the standard library only. READ core FIRST."""
