"""Plan training and decoding ahead of time, without the target hardware."""
