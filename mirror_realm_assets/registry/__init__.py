"""The registry of sources as a service: sources as code.

What belongs here: what the command line, and later other front ends, do with sources. What does not: the rows
(`catalog.sources`) and the options (`catalog.policy`).
"""
