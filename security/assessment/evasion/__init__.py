"""Evasion: inputs that are changed a little, and get another answer."""
