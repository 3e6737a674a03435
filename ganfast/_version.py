"""The version, in one place: the package, its metadata and its run folders read it here."""

__version__ = "0.1.0"
