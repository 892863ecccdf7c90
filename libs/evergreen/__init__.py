"""Everything that is generated from `protos/`."""
