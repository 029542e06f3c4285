"""Printers: scalar expressions, bodies and whole programs as source for each target."""
