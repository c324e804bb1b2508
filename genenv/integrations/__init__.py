"""Views of the vector environment for other libraries; each file is the only one that knows its library."""
