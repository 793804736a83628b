"""What a new device is told by a file on its card: `provision_file` reads it, `apply` writes what it says."""
