"""Enhancement: larger, cleaner pictures from small ones.

What belongs here: cutting a picture into tiles (`tiling`), the networks (`networks`), upscaling a whole picture
(`upscale`), writing the result (`codec`) and saying how long it will take (`estimate`). What does not: reading
originals, the ledger, and anything of Dagster.
"""
