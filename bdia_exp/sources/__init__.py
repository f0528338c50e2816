"""What can be loaded, and from where: files, downloads, checkpoints, captions."""
