"""The command line `mirror-realm`.

What belongs here: commands that parse, call one domain function, and print. What does not: the work. Each module holds
the commands of one concern; their heavy imports are inside the commands, so that `--help` is fast.
"""
