"""The pipeline: a module for each stage, and the rooms that they share."""
