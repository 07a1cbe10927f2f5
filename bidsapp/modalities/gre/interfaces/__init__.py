"""Steps of gradient-echo MRI: files in, files out."""
