"""The commands of `atlasloop`, one module per topic; each imports what it needs when it runs."""
