"""From a video file to sampled frames: decoding with true timestamps, sampling, transforms. Knows no network."""
