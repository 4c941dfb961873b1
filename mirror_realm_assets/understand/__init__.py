"""Understanding: what a picture shows, as numbers and words.

What belongs here: embeddings (`embedder`), and queries made of words (`words`). What does not: where vectors are
stored, and the index that searches them (`search`).
"""
