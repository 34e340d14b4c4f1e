"""Peers that share no code with this project."""
