"""Understanding: what a picture shows, as numbers and words.

What belongs here: embeddings (`embedder`). What does not: where they are stored, and the index that searches them
(`search`).
"""
