"""Any images with one class each: class folders, or a table of paths and labels."""
