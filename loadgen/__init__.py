"""Produces load and writes request records. Importing this package imports nothing else."""
