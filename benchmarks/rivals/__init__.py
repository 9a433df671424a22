"""Other tools on the same images; each file is run by the Python of an environment that has the tool."""
