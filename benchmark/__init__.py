"""Runs things: plans cells, executes them, and writes one record for each."""
