"""Sensors: each asks the ledger what is to be done and requests runs; none remembers anything.

What belongs here: the way from the ledger to run requests. What does not: the decisions themselves
(`catalog.requests`), and anything slow: a tick has a soft budget of a few seconds.
"""
