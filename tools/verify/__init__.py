"""What `tools.verify` is made of, an idea a module; none is run by itself."""
