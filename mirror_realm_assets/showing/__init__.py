"""What people look at: pages of search results and contact sheets, as single files.

What belongs here: thumbnails, pages, sheets, and where such a file may be put. What does not: finding anything
(`finding`), the terminal (`cli`), pictures within Dagster's events (`assets.glance`).
"""
