# Installed files: filled in with the package config.
