"""What is held equal: protocol files and the objects that they are read into. Never loads torch."""

from protocols.load import list_protocols, load_protocol

__all__ = ["list_protocols", "load_protocol"]
