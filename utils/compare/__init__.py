"""Images compared with each other: in a notebook, by thumbnail, or as a page."""
