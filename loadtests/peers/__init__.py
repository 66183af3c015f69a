"""Other people's software, installed apart and driven on this machine for comparison."""
