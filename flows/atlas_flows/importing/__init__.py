"""Flow `import` (`flow`): CTs and their labels out of the landing folder."""
