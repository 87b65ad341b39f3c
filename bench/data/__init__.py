"""Images on disk or from the hub: how they are read, decoded once, kept, exported, fetched and checked."""
