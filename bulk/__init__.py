"""Many proteins on many devices: planned by a driver, computed by Ray's actors, written once each."""
