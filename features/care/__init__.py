"""Care of a store: verify it, join its parts, copy and merge streams, remove clips."""
