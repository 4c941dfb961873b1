"""Asset checks at the gates between stages.

What belongs here: checks for *our* failures; a blocking one stops what depends on the asset. What does not: refusals,
which are the file's fault and fail nothing.
"""
