"""Tools for tests: the contract that every engine fulfils."""
