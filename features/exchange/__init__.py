"""Features from other programs, and for them: one file a format; and the card of a store that is shared."""
