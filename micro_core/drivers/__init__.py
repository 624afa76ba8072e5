"""Select, create and start the drivers that the settings name."""
