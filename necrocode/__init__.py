"""Independent, stateless runner processes, coordinated by nothing but files."""

__version__ = "0.1.0"
