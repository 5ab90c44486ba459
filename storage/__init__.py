"""Where bytes are: folders, object stores and web servers; and temporary files that nobody leaves behind."""
