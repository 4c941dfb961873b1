"""Dagster resources: the ways from an asset to the settings, the catalog, the store and the models."""
