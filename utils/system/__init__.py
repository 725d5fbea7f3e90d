"""What every other room uses: errors, files, the machine and the settings."""
