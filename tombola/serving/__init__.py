"""The pages of a report live over a store of runs: read-only, and for this machine alone unless asked otherwise.

``watching`` reads the store, ``overview`` and ``pages`` make pages of it, ``app`` answers requests, ``guard`` refuses
those of strangers, ``server`` listens.
"""
