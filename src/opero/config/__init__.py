"""Configuration: profiles from YAML files and environment variables, with the source of every value."""
