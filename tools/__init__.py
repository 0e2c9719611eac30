"""What people run by hand; no stage imports it."""
