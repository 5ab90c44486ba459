"""What turns pixels and captions into features: networks, their weights and conventions. Knows no video file."""
