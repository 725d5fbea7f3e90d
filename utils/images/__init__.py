"""Images: from a file to a batch."""
