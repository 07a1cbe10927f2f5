"""Steps of reconstruction: files in, files out."""
