"""What every layer uses: errors, files, processes, devices, registries, and text for people."""
