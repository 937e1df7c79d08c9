"""One file an implementation; none of them imports the oracle."""
