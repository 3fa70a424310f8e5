"""The version, in a file of its own: the package root and the run record both read it."""

__version__ = "0.1.0"
