"""Models of text-video retrieval: trained, evaluated and searched from a store alone. Knows no video."""
