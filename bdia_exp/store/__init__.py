"""Files on disk: images, records, the folders of runs."""
