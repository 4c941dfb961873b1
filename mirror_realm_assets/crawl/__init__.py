"""Crawlers: which addresses they may reach.

What belongs here: what a crawler may do and does on the network. What does not: what becomes of a file that was found
(`ingest`).
"""
