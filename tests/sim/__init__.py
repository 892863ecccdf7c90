"""What tests of the simulator share: a gateway's stand-in that answers what a test wants."""
