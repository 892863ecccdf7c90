"""Devices that run a policy although none is in force for their organisation."""
