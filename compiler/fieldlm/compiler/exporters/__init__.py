"""One file per artefact format: a checkpoint goes in, files an engine can load come out."""
