"""The commands of `atlasloop`, one module per group: each parses, calls and prints."""
