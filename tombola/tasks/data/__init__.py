"""Data: labelled sets in memory, where their files live, how they are downloaded and read."""
