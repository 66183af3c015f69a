"""Load tests speak the wire; benches measure inside one process."""
