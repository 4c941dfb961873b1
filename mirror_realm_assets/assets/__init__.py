"""The assets, as a table of contents: each module makes one or a few, and the work is done in domain packages."""
