"""The nearest images of a folder, found and explained."""
