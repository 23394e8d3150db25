"""A decode process: reserves, pulls, verifies, generates; prefills for itself when it must."""
