"""Faces in pictures.

What belongs here: finding faces, and turning them upright to a size that networks expect. What does not: restoring them
(`enhance.faces`), and who they are.
"""
