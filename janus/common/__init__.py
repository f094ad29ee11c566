"""What every package may use: errors, files, options, the console, pages."""
