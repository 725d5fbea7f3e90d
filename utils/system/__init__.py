"""The machine, files on it, settings, and errors: what every other room stands on."""
