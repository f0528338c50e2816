"""Loading of files: downloads, checkpoints, captions."""
