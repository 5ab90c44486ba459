"""Import and export of features, one module per format; and the card of a shared store."""
