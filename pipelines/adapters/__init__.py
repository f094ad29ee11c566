"""A function per dataset: from its folder, in the hub's own layout, to the number of rows and its `RawRow`s.

An adapter knows where fields are, and rejects rows it cannot take apart; it raises UserError for a file of
another layout. What holds for every source (stripping, empty texts, hashes) is done once, by ingest.
"""
