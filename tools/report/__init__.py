"""What `tools.report` is made of, an idea a module; none is run by itself."""
