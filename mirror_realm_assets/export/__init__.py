"""Exports: enhanced pictures and originals as a folder that a person can use, kept up to date by every run."""
