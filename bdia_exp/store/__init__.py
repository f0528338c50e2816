"""What is on the disk: files, images, records, the folders of runs."""
