"""The package's version; ranks that run different ones refuse to sync."""

__version__ = "0.1.0"
