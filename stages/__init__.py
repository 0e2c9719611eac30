"""The pipeline's stages, one module each, and the small modules that they share."""
